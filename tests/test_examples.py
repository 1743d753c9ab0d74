"""The examples of the README run, print what they promise and stay short."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from metarec import create_algorithm
from metarec.testing import AlgorithmConformance

EXAMPLES = Path(__file__).parents[1] / "examples"
ShrunkMean = runpy.run_path(str(EXAMPLES / "shrunk_mean.py"))["ShrunkMean"]


def lines_of_code(name):
    """Lines that are neither empty, nor a comment, nor a docstring."""
    text = (EXAMPLES / name).read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [
        range(node.body[0].lineno, node.body[0].end_lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    numbered = enumerate(text.splitlines(), 1)
    return [
        line
        for number, line in numbered
        if line.strip() and not line.startswith("#") and not any(number in lines for lines in docstrings)
    ]


def test_newcomer_prints_title_score_deviation_and_why(capsys):
    assert len(lines_of_code("newcomer.py")) <= 12
    runpy.run_path(str(EXAMPLES / "newcomer.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    recommended = [re.fullmatch(r"(\d\.\d\d) ± (\d\.\d\d)  \S.+", line) for line in printed[::3]]
    assert len(printed) == 12 and all(recommended)
    scores = [float(match[1]) for match in recommended]
    assert all(1 <= score <= 5 for score in scores)
    titles = {"Broccoli/Cauliflower: Broccoli Whole&Crowns", "Breakfast Sweets: Sw Gds:Donuts"}
    for of_broccoli_and_donuts in zip(printed[1::3], printed[2::3], strict=True):
        reasons = [re.fullmatch(r" {5}([+-]\d\.\d\d)  for (.+)", line) for line in of_broccoli_and_donuts]
        assert {reason[2] for reason in reasons} == titles


class TestShrunkMean(AlgorithmConformance):
    algorithm = ShrunkMean

    def test_is_short_enough_to_be_read(self):
        assert len(lines_of_code("shrunk_mean.py")) <= 26

    def test_is_the_posterior_mean(self, world, tasks, fitted):
        adapted = fitted.adapt(tasks.support)
        ratings = world.split.train.rating.tolist()
        mean = sum(ratings) / len(ratings)
        for task in range(len(tasks)):
            start, stop = tasks.support.offsets[task : task + 2].tolist()
            its = tasks.support.rating[start:stop].tolist()
            precision = 5.0 + len(its)
            assert adapted.mean[task].item() == pytest.approx((5.0 * mean + sum(its)) / precision, abs=1e-5)
            assert adapted.variance[task].item() == pytest.approx(
                fitted.noise_ * (1 + 1 / precision), rel=1e-5
            )


def test_its_option_is_validated():
    fields = {"strength": 2.0}
    assert ShrunkMean(**fields).options() == fields
    with pytest.raises(TypeError):
        ShrunkMean(2.0)


def test_the_default_algorithm_is_there():
    assert create_algorithm().name == "bayesian"
