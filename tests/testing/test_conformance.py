"""The conformance suite lets a sound algorithm pass and catches every planted bug, with the test meant for it."""

import runpy
from collections import defaultdict
from pathlib import Path

import pytest

from metarec.testing import AlgorithmConformance

EVERY_ABILITY = Path(__file__).parents[2] / "examples" / "every_ability.py"
PLANTED = Path(__file__).with_name("planted_bugs.py")

EXPECTED = {
    "BatchOrder": "test_a_batch_is_its_tasks_one_by_one",
    "SeesOtherTasks": "test_a_batch_is_its_tasks_one_by_one",
    "SupportOrder": "test_order_of_the_support_does_not_matter",
    "ChangesWhatItFitted": "test_adapt_and_predict_leave_alone_what_was_fitted",
    "Caches": "test_adapt_and_predict_leave_alone_what_was_fitted",
    "HidesWhatItLearns": "test_what_fit_learns_ends_in_an_underscore",
    "LosesWhatItRestores": "test_saved_and_loaded_it_predicts_the_same",
    "CannotBeSaved": "test_saved_and_loaded_it_predicts_the_same",
    "OnePerTask": "test_prediction_has_the_right_shape",
    "NegativeVariance": "test_prediction_has_the_right_shape",
    "NoiseAboveVariance": "test_prediction_has_the_right_shape",
    "NoiseAlone": "test_prediction_has_the_right_shape",
    "PlainMean": "test_empty_supports_and_empty_queries_work",
    "StaysOnTheCPU": "test_runs_on_another_device",
    "RestoresOnTheCPU": "test_serves_on_another_device",
    "NeedsAQuery": "test_empty_supports_and_empty_queries_work",
    "ChangesSupport": "test_adapt_and_predict_leave_their_input_alone",
    "ChangesAdapted": "test_adapt_and_predict_leave_their_input_alone",
    "ChangesTrain": "test_fit_leaves_its_input_alone",
    "RoundsAnOption": "test_options_are_typed_and_stored_unchanged",
    "LearnsInInit": "test_options_are_typed_and_stored_unchanged",
    "FitReturnsNothing": "test_fit_returns_self",
    "Unseeded": "test_one_seed_gives_one_result",
    "SinglePrecision": "test_works_in_float64",
    "KeepsAList": "test_adapted_can_be_sliced",
    "WrongFactors": "test_factors_rank_the_catalogue",
    "DrawsTheNoiseToo": "test_draws_agree_with_the_prediction",
    "DrawsFromThePrior": "test_draws_agree_with_the_prediction",
    "DrawsByAnyGenerator": "test_draws_agree_with_the_prediction",
    "WrongAbsorb": "test_absorb_is_adapting_to_all_and_forget_undoes_it",
    "WrongForget": "test_absorb_is_adapting_to_all_and_forget_undoes_it",
    "WrongExplanation": "test_explanation_adds_up",
    "WrongLeaveOneOut": "test_explanation_adds_up",
    "OneReasonOnly": "test_explanation_adds_up",
    "UnknownScenario": "test_declares_what_it_is",
    "UnknownFeedback": "test_declares_what_it_is",
}


class TestEveryAbility(AlgorithmConformance):
    algorithm = runpy.run_path(str(EVERY_ABILITY))["RunningMean"]


class Outcomes:
    """Collects what failed, by class and test, and in what words."""

    def __init__(self):
        self.failed = defaultdict(lambda: defaultdict(list))
        self.collection_errors = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            _, name, test = report.nodeid.split("::")
            self.failed[name.removeprefix("Test")][test.partition("[")[0]].append(report.longreprtext)

    def pytest_collectreport(self, report):
        if report.failed:
            self.collection_errors.append(report.longreprtext)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    file = tmp_path_factory.mktemp("conformance") / "test_planted.py"
    suites = "".join(
        f"class Test{name}(AlgorithmConformance):\n    algorithm = planted[{name!r}]\n\n" for name in EXPECTED
    )
    file.write_text(
        "import runpy\nfrom metarec.testing import AlgorithmConformance\n\n"
        f"planted = runpy.run_path({str(PLANTED)!r})\n\n{suites}"
    )
    outcomes = Outcomes()
    options = ["--tb=short", "-p", "no:cacheprovider", f"--rootdir={file.parent}"]
    pytest.main([*(f"{file}::Test{bug}::{test}" for bug, test in EXPECTED.items()), *options], [outcomes])
    return outcomes


def test_every_suite_was_collected(outcomes):
    assert outcomes.collection_errors == []
    assert set(outcomes.failed) == set(EXPECTED)


@pytest.mark.parametrize("bug", EXPECTED)
def test_catches(outcomes, bug):
    assert EXPECTED[bug] in outcomes.failed[bug], f"only {', '.join(outcomes.failed[bug])} failed"


@pytest.mark.parametrize(
    ("bug", "words"),
    [
        ("BatchOrder", "the mean with task 1 alone must be that of the batch: they are up to 0.01"),
        ("ChangesWhatItFitted", "adapt or predict must not change mean_"),
        ("Caches", "adapt and predict must not store last_"),
        ("HidesWhatItLearns", "fit must store what it learns under names that end in '_', found level"),
        ("CannotBeSaved", "algorithm attribute 'things_' is a list, expected a tensor"),
        ("OnePerTask", "mean has shape [12], expected ["),
        ("NegativeVariance", "variance must be positive"),
        ("NoiseAlone", "noise is a part of the variance: there must be one"),
        ("ChangesSupport", "adapt must not change support.rating"),
        ("ChangesTrain", "fit must not change train.rating"),
        ("RoundsAnOption", "__init__ must store 'strength' unchanged, found 5"),
        ("FitReturnsNothing", "fit must return self"),
        ("SinglePrecision", "mean is torch.float32, expected torch.float64"),
        ("Unseeded", "mean must be the same after a second fit with the same seed, bit for bit"),
        ("DrawsByAnyGenerator", "the same generator must give the same draws, bit for bit"),
        ("WrongAbsorb", "with absorbing the last rating must be that of the batch"),
        ("WrongForget", "with forgetting the last rating must be that of the batch"),
        ("OneReasonOnly", "one contribution per support rating is expected"),
        ("UnknownScenario", "scenarios must be a tuple of some of warm, new-user, new-item, new-both"),
    ],
)
def test_says_in_a_sentence_what_is_wrong(outcomes, bug, words):
    assert any(words in text for text in outcomes.failed[bug][EXPECTED[bug]])
