"""A fit can be watched: how far it has come, and what its epochs measure; where there is no terminal all is silent."""

import re

import pytest
from rich.console import Console

from metarec import create_algorithm, progress
from metarec.learning import Run, Training
from metarec.progress import Bars
from metarec.testing import small_world


class Watched(Bars):
    """Notes the lines as they stand after each measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def measured(self, values):
        super().measured(values)
        console = Console(width=100)
        with console.capture() as shown:
            console.print(*self.get_renderables())
        self.lines += shown.get().splitlines()


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    return Watched()


def test_a_fit_shows_its_epochs_and_their_losses(bars):
    told: list[dict[str, float]] = []

    class Hook:
        def after_epoch(self, algorithm, epoch, values):
            told.append(values)

    training = Training(epochs=3, held_out=0.25)
    fitted = create_algorithm("maml", size=2, hidden=(2,), training=training)
    fitted.fit(small_world().split.train, run=Run(progress=bars, hooks=Hook()))
    assert len(bars.lines) == len(told) and {"loss", "valid_loss"} <= told[0].keys()
    for epoch, (line, values) in enumerate(zip(bars.lines[:3], told[:3], strict=True)):
        assert re.search(rf"train maml .* {epoch}/3 ", line)
        assert f"loss {values['loss']:.3g}, valid loss {values['valid_loss']:.3g}, learning" in line
    assert "valid" not in bars.lines[-1], "nobody is held out of the training that counts"
    assert not bars.tasks, "a bar vanishes when its work is done"


def test_what_is_measured_stands_beside_the_innermost_bar(bars):
    bars.measured({"loss": 9.0})
    for _ in bars.track(range(2), description="seeds", total=2):
        for _ in bars.track(range(2), description="train", total=2):
            bars.measured({"loss": 0.5})
        bars.measured({"gain": 2.0})
    assert [line.split()[1] for line in bars.lines] == [*(["seeds", "train"] * 2), "seeds"] * 2
    assert all(("loss 0.5" in line) == ("train" in line) for line in bars.lines)
    assert all("gain" not in line for line in bars.lines[:4]) and "gain 2" in bars.lines[4]


def test_without_a_terminal_nothing_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with Bars() as bars:
        for step in bars.track(range(3), description="train", total=3):
            bars.measured({"loss": float(step)})
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_on_a_terminal_it_is_shown_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Bars() as bars:
        for _ in bars.track(range(3), description="train", total=3):
            bars.measured({"loss": 0.25})
            bars.refresh()
    shown = capsys.readouterr()
    assert "loss 0.25" in shown.err and shown.out == ""
