"""The suite that an algorithm must pass.

Put this in a file ``test_mine.py`` and run ``pytest test_mine.py``; no data and no registration are needed:

    from metarec.testing import AlgorithmConformance
    from my_package import Mine

    class TestMine(AlgorithmConformance):
        algorithm = Mine
        options = {"epochs": 2}  # keep it quick: what is learnt need not be good

Every test of the contract then runs for each kind of feedback and each scenario that ``Mine`` declares; one that fails
says in a sentence what ``Mine`` must do. An ability, such as ``explain``, is tested where the class has it and is
skipped by name where it has not. More tests of your own go into the same class and may use its fixtures ``world``,
``tasks`` and ``fitted``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from metarec import artifact
from metarec.data import SIDES, Side, partner_side
from metarec.learning import (
    Adapted,
    Algorithm,
    Explainable,
    Factorized,
    Generative,
    Prediction,
    Run,
    Updatable,
)
from metarec.options import build, parameters
from metarec.pluginmanager import PluginManager
from metarec.serving import Recommender
from metarec.tasks import SCENARIOS, Query, Support, Tasks
from metarec.testing.oracles import verify
from metarec.testing.pretend_device import pretend_device
from metarec.testing.world import SmallWorld, small_world


class AlgorithmConformance:
    """Subclass it in a test file, name the class ``Test…`` and set `algorithm`: see the module's example.

    It fits the algorithm on `small_world`, for each kind of feedback and in each scenario that the algorithm declares.

    Attributes
    ----------
    algorithm : type[Algorithm]
    options : mapping
        Options to make it with, such as few epochs; default none.
    tolerance : float
        How far float32 results that should be the same may be apart; default 1e-4.
    """

    algorithm: ClassVar[type[Algorithm]]
    options: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float] = 1e-4

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test for each kind of feedback and each scenario."""
        for argument, values in (
            ("feedback", self.algorithm.feedback),
            ("scenario", self.algorithm.scenarios),
        ):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, values)

    @pytest.fixture
    def world(self, feedback: str) -> SmallWorld:
        """A small world with this feedback; a copy for each test, which it may spoil."""
        return copy.deepcopy(small_world(implicit=feedback == "implicit"))

    @pytest.fixture
    def tasks(self, world: SmallWorld, scenario: str) -> Tasks:
        """Its tasks in this scenario."""
        return world.tasks(scenario)

    @pytest.fixture
    def fitted(self, feedback: str) -> Algorithm:
        """The algorithm, fitted on this world; a copy for each test."""
        return _fitted(type(self), feedback, torch.float32)

    def test_declares_what_it_is(self) -> None:
        """`name` is a string; `scenarios` and `feedback` hold known words."""
        assert isinstance(self.algorithm.name, str), "name must be a string"
        _subset("scenarios", self.algorithm.scenarios, SCENARIOS)
        _subset("feedback", self.algorithm.feedback, ("explicit", "implicit"))

    def test_options_are_typed_and_stored_unchanged(self) -> None:
        """``__init__`` takes keyword-only, typed options and only stores them."""
        made = _made(type(self))
        defaults = {name: option.default for name, option in parameters(self.algorithm).items()}
        expected = {**defaults, **self.options}
        for name, value in expected.items():
            assert hasattr(made, name), f"__init__ must store the option {name!r} under its name"
            assert getattr(made, name) == value, (
                f"__init__ must store {name!r} unchanged, found {getattr(made, name)!r}"
            )
        assert not made.state(), f"__init__ must only store options, found {', '.join(made.state())}"

    def test_fit_returns_self(self, world: SmallWorld) -> None:
        """So that ``Mine().fit(train)`` is the fitted one."""
        made = _made(type(self))
        assert made.fit(world.split.train) is made, "fit must return self"

    def test_what_fit_learns_ends_in_an_underscore(self, fitted: Algorithm) -> None:
        """Else an artifact would lack it."""
        learnt = set(vars(fitted)) - set(vars(_made(type(self)))) - set(fitted.state())
        assert not learnt, (
            f"fit must store what it learns under names that end in '_', found {', '.join(sorted(learnt))}"
        )

    def test_fit_leaves_its_input_alone(self, world: SmallWorld) -> None:
        """The training set is shared by all algorithms of a run."""
        train = copy.deepcopy(world.split.train)
        _made(type(self)).fit(train)
        _assert_unchanged(train, world.split.train, "fit", "train")

    def test_known_answers(self) -> None:
        """What is known of its family and its abilities, as ``metarec verify`` shows it."""
        for check in verify(self.algorithm):
            assert check.passed, (
                f"{check.name}: off by {check.error:.2g}, at most {check.tolerance:.0e} is right"
            )

    def test_adapt_and_predict_leave_their_input_alone(self, fitted: Algorithm, tasks: Tasks) -> None:
        """So are the tasks."""
        support, query = copy.deepcopy((tasks.support, tasks.query))
        adapted = fitted.adapt(support)
        _assert_unchanged(support, tasks.support, "adapt", "support")
        kept = copy.deepcopy(adapted)
        fitted.predict(adapted, query)
        _assert_unchanged(query, tasks.query, "predict", "query")
        _assert_unchanged(adapted, kept, "predict", "adapted")

    def test_adapt_and_predict_leave_alone_what_was_fitted(self, fitted: Algorithm, tasks: Tasks) -> None:
        """Else a task's result would hang on the tasks before it."""
        before = copy.deepcopy(fitted.state())
        _predicted(fitted, tasks)
        now = fitted.state()
        assert set(now) == set(before), (
            f"adapt and predict must not store {', '.join(set(now) ^ set(before))}"
        )
        for name in before:
            _assert_unchanged(now[name], before[name], "adapt or predict", name)

    def test_prediction_has_the_right_shape(self, fitted: Algorithm, tasks: Tasks) -> None:
        """One finite mean per query partner; ``0 ≤ noise ≤ variance`` and ``variance > 0`` where there are such."""
        _assert_sound(_predicted(fitted, tasks), tasks.query, torch.float32)

    def test_empty_supports_and_empty_queries_work(self, fitted: Algorithm, tasks: Tasks) -> None:
        """No rating at all is the commonest cold start."""
        nothing = replace(
            tasks.support,
            offsets=torch.zeros_like(tasks.support.offsets),
            partner=tasks.support.partner[:0],
            rating=tasks.support.rating[:0],
        )
        _assert_sound(fitted.predict(fitted.adapt(nothing), tasks.query), tasks.query, torch.float32)
        no_query = replace(
            tasks.query, offsets=torch.zeros_like(tasks.query.offsets), partner=tasks.query.partner[:0]
        )
        _assert_sound(fitted.predict(fitted.adapt(tasks.support), no_query), no_query, torch.float32)
        none = torch.zeros(0, dtype=torch.int64)
        _assert_sound(_predicted(fitted, tasks.select(none)), tasks.query.select(none), torch.float32)

    def test_a_batch_is_its_tasks_one_by_one(self, fitted: Algorithm, tasks: Tasks) -> None:
        """No task sees another, and their order does not matter."""
        together = _predicted(fitted, tasks)
        for task in range(len(tasks)):
            this = torch.tensor([task])
            entries = tasks.query.entries(this)[1]
            self._same(_predicted(fitted, tasks.select(this)), _take(together, entries), f"task {task} alone")
        turned = torch.arange(len(tasks)).flip(0)
        entries = tasks.query.entries(turned)[1]
        self._same(
            _predicted(fitted, tasks.select(turned)), _take(together, entries), "the tasks in another order"
        )

    def test_adapted_can_be_sliced(self, fitted: Algorithm, tasks: Tasks) -> None:
        """``adapted.select`` gives the state of some of the tasks."""
        some = torch.arange(len(tasks)).flip(0)[::2]
        sliced = fitted.predict(fitted.adapt(tasks.support).select(some), tasks.query.select(some))
        expected = _take(_predicted(fitted, tasks), tasks.query.entries(some)[1])
        self._same(sliced, expected, "adapted.select(tasks)")

    def test_order_of_the_support_does_not_matter(self, fitted: Algorithm, tasks: Tasks) -> None:
        """A support is a set."""
        turned = _reversed(tasks.support)
        found = fitted.predict(fitted.adapt(turned), tasks.query)
        self._same(found, _predicted(fitted, tasks), "the support in another order")

    def test_works_in_float64(self, feedback: str, tasks: Tasks) -> None:
        """So that oracles can be strict."""
        fitted = _fitted(type(self), feedback, torch.float64)
        adapted = fitted.adapt(tasks.support.to(dtype=torch.float64))
        query = tasks.query.to(dtype=torch.float64)
        _assert_sound(fitted.predict(adapted, query), query, torch.float64)

    def test_one_seed_gives_one_result(self, fitted: Algorithm, world: SmallWorld, tasks: Tasks) -> None:
        """Bit for bit."""
        again = _predicted(_made(type(self)).fit(world.split.train, run=Run(seed=1)), tasks)
        _assert_equal(again, _predicted(fitted, tasks), "after a second fit with the same seed")

    def test_saved_and_loaded_it_predicts_the_same(
        self, fitted: Algorithm, world: SmallWorld, tasks: Tasks, tmp_path: Path
    ) -> None:
        """Bit for bit, through an artifact."""
        plugins = PluginManager()
        plugins.algorithms.add(self.algorithm.name, self.algorithm, owner="conformance")
        artifact.save(Recommender.from_split(fitted, world.split), tmp_path / "saved", plugins=plugins)
        loaded = artifact.load(tmp_path / "saved", plugins=plugins).algorithm
        _assert_equal(_predicted(loaded, tasks), _predicted(fitted, tasks), "after saving and loading")

    def test_runs_on_another_device(self, feedback: str, world: SmallWorld) -> None:
        """Fits, adapts and predicts where the run and its tasks are, and what was fitted elsewhere can be moved there.

        The device is a pretended one, so that it needs no machine that has another.
        """
        fitted = _fitted(type(self), feedback, torch.float32)
        tasks = world.tasks(self.algorithm.scenarios[0]).select(torch.arange(3, 7))
        expected = _predicted(fitted, tasks)
        with pretend_device() as device:
            support, query = tasks.support.to(device), tasks.query.to(device)
            there = _made(type(self)).fit(world.split.train, run=Run(seed=1, device=device))
            for name, value in _tensors(there.state()):
                assert value.device == device, f"fit on another device must leave {name!r} there"
            found = there.predict(there.adapt(support), query)
            assert found.mean.device == device, "predict must answer where the tasks are"
            self._same(_on_cpu(found), expected, "what was fitted on another device")
            adapted = fitted.to(device).adapt(support).to("cpu").to(device)
            self._same(_on_cpu(fitted.predict(adapted, query)), expected, "what was moved to another device")
            for ability, result in _used(fitted, adapted, support, query):
                assert result.device == device, f"{ability} must answer where the tasks are"

    def test_serves_on_another_device(self, fitted: Algorithm, world: SmallWorld, tmp_path: Path) -> None:
        """A recommender says there what it says here, and can be saved on the one and loaded on the other."""
        side = next((side for side in SIDES if f"new-{side}" in self.algorithm.scenarios), None)
        if side is None:
            pytest.skip(f"{fitted.name} answers for no newcomers")
        plugins = PluginManager()
        plugins.algorithms.add(self.algorithm.name, self.algorithm, owner="conformance")
        here = Recommender.from_split(fitted, world.split)
        expected = _served(here, side)
        artifact.save(here, tmp_path / "here", plugins=plugins)
        with pretend_device() as device:
            there = artifact.load(tmp_path / "here", device=device, plugins=plugins)
            for name, value in _tensors(there.algorithm.state()):
                assert value.device == device, f"{name!r} must be where it was loaded to"
            self._close(_served(there, side), expected, "what is served on another device", "as on the CPU")
            artifact.save(there, tmp_path / "there", plugins=plugins)
        back = artifact.load(tmp_path / "there", plugins=plugins)
        self._close(_served(back, side), expected, "what was saved on another device", "as on the CPU")

    def test_factors_rank_the_catalogue(self, fitted: Algorithm, tasks: Tasks) -> None:
        """`Factorized`: by dot products that are the mean, or with `ranks_by` "choice" do not depend on the batch."""
        if not isinstance(fitted, Factorized):
            pytest.skip(f"{fitted.name} is not Factorized")
        dot = _dot_products(fitted, fitted.adapt(tasks.support), tasks)
        if fitted.ranks_by == "mean":
            self._close(dot, _predicted(fitted, tasks).mean, "the factors' dot product", "the predicted mean")
        turned = torch.arange(len(tasks)).flip(0)
        other_way = tasks.select(turned)
        found = _dot_products(fitted, fitted.adapt(other_way.support), other_way)
        self._close(
            found,
            dot[tasks.query.entries(turned)[1]],
            "the dot product in another order",
            "that of the batch",
        )

    def test_absorb_is_adapting_to_all_and_forget_undoes_it(self, fitted: Algorithm, tasks: Tasks) -> None:
        """`Updatable`: as if the rating had been in the support, or had not."""
        if not isinstance(fitted, Updatable):
            pytest.skip(f"{fitted.name} is not Updatable")
        some = (tasks.support.counts > 0).nonzero().squeeze(1)
        tasks = tasks.select(some)
        last = tasks.support.offsets[1:] - 1
        one = _entries(tasks.support, last, torch.ones(len(tasks), dtype=torch.int64))
        kept = (
            torch.ones(tasks.support.partner.numel(), dtype=torch.bool)
            .index_fill(0, last, False)
            .nonzero()
            .squeeze(1)
        )
        rest = _entries(tasks.support, kept, tasks.support.counts - 1)
        all_at_once, without = fitted.adapt(tasks.support), fitted.adapt(rest)
        for what, found, expected in (
            ("absorbing the last rating", fitted.absorb(without, one), all_at_once),
            ("forgetting the last rating", fitted.forget(all_at_once, one), without),
        ):
            self._same(fitted.predict(found, tasks.query), fitted.predict(expected, tasks.query), what)
            if isinstance(fitted, Factorized):
                dot = _dot_products(fitted, found, tasks)
                self._close(
                    dot, _dot_products(fitted, expected, tasks), f"the dot product after {what}", "as it was"
                )

    def test_draws_agree_with_the_prediction(self, fitted: Algorithm, tasks: Tasks) -> None:
        """`Generative`: their mean is the predicted one, their variance that of the prediction less the noise."""
        if not isinstance(fitted, Generative):
            pytest.skip(f"{fitted.name} is not Generative")
        count, adapted, expected = 4000, fitted.adapt(tasks.support), _predicted(fitted, tasks)
        draws, again = (
            fitted.draw(adapted, tasks.query, count, generator=torch.Generator().manual_seed(1)) for _ in "ab"
        )
        assert torch.equal(draws, again), "the same generator must give the same draws, bit for bit"
        assert draws.shape == (count, tasks.query.partner.numel()), (
            f"draws have shape {list(draws.shape)}, expected [{count}, {tasks.query.partner.numel()}]"
        )
        variance, mean = torch.var_mean(draws.double(), 0)
        apart = ((mean - expected.mean) / (variance / count).sqrt().clamp(min=self.tolerance)).abs().max()
        assert apart < 6, f"the mean of {count} draws is {apart:.1f} standard errors from the predicted mean"
        if expected.variance is not None and expected.noise is not None:
            unknown = expected.variance - expected.noise
            ratio = ((variance + self.tolerance) / (unknown + self.tolerance)).log().abs().max().exp()
            assert ratio < 1.3, (
                f"the variance of {count} draws is {ratio:.2f} times that of the prediction without its noise, or the "
                "reverse"
            )

    def test_explanation_adds_up(self, fitted: Algorithm, tasks: Tasks) -> None:
        """`Explainable`: baseline + contributions = mean where additive; else each is the effect of leaving one out."""
        if not isinstance(fitted, Explainable):
            pytest.skip(f"{fitted.name} is not Explainable")
        explanation = fitted.explain(fitted.adapt(tasks.support), tasks.support, tasks.query)
        counts = tasks.support.counts[tasks.query.owner]
        assert torch.equal(explanation.offsets.diff(), counts), (
            "one contribution per support rating is expected"
        )
        mean = _predicted(fitted, tasks).mean
        owner = torch.repeat_interleave(torch.arange(mean.numel()), counts)
        if explanation.kind == "additive":
            total = explanation.baseline.index_add(0, owner, explanation.contribution)
            self._close(total, mean, "baseline + contributions", "the predicted mean")
        else:
            without = self._leave_one_out(fitted, tasks)
            self._close(
                explanation.contribution, mean[owner] - without, "a contribution", "the effect of its rating"
            )

    def _leave_one_out(self, fitted: Algorithm, tasks: Tasks) -> Tensor:
        """The mean of each query partner without each rating of its task's support."""
        means: list[Tensor] = []
        for task in range(len(tasks)):
            this = tasks.select(torch.tensor([task]))
            count = int(this.support.counts)
            left_out = [
                _entries(
                    this.support, torch.arange(count)[torch.arange(count) != j], torch.tensor([count - 1])
                )
                for j in range(count)
            ]
            each = [fitted.predict(fitted.adapt(support), this.query).mean for support in left_out]
            means.append(torch.stack(each, 1).flatten() if each else this.rating.new_zeros(0))
        return torch.cat(means)

    def _same(self, found: Prediction, expected: Prediction, what: str) -> None:
        self._close(found.mean, expected.mean, f"the mean with {what}", "that of the batch")
        if expected.variance is not None and found.variance is not None:
            self._close(found.variance, expected.variance, f"the variance with {what}", "that of the batch")

    def _close(self, found: Tensor, expected: Tensor, what: str, like: str) -> None:
        assert found.shape == expected.shape, (
            f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}"
        )
        apart = (found - expected).abs().max().item() if found.numel() else 0.0
        assert apart <= self.tolerance, f"{what} must be {like}: they are up to {apart:.3g} apart"


def _made(suite: type[AlgorithmConformance]) -> Algorithm:
    return build(suite.algorithm, suite.options, what=f"algorithm {suite.algorithm.name!r}")


_FITTED: dict[tuple[type[AlgorithmConformance], str, torch.dtype], Algorithm] = {}


def _fitted(suite: type[AlgorithmConformance], feedback: str, dtype: torch.dtype) -> Algorithm:
    """A copy of the algorithm fitted once for all tests, so that none sees what another did to it."""
    key = suite, feedback, dtype
    if key not in _FITTED:
        train = copy.deepcopy(small_world(implicit=feedback == "implicit").split.train)
        _FITTED[key] = _made(suite).fit(train, run=Run(dtype=dtype, seed=1))
    return copy.deepcopy(_FITTED[key])


def _predicted(fitted: Algorithm, tasks: Tasks) -> Prediction:
    return fitted.predict(fitted.adapt(tasks.support), tasks.query)


def _dot_products(fitted: Factorized, adapted: Adapted, tasks: Tasks) -> Tensor:
    """Of each query partner with its task."""
    queries = fitted.query_factors(adapted)
    candidates = fitted.candidate_factors(tasks.support.side, tasks.query.partners)
    return (queries[tasks.query.owner] * candidates[tasks.query.partner]).sum(1)


def _used(
    fitted: Algorithm, adapted: Adapted, support: Support, query: Query
) -> Iterator[tuple[str, Tensor]]:
    """A result of each optional ability that the algorithm has."""
    if isinstance(fitted, Factorized):
        yield "query_factors", fitted.query_factors(adapted)
        yield "candidate_factors", fitted.candidate_factors(support.side, query.partners)
    if isinstance(fitted, Generative):
        generator = torch.Generator(query.partner.device).manual_seed(1)
        yield "draw", fitted.draw(adapted, query, 2, generator=generator)
    if isinstance(fitted, Explainable):
        yield "explain", fitted.explain(adapted, support, query).contribution
    if isinstance(fitted, Updatable):
        some = (support.counts > 0).nonzero().squeeze(1)
        rated = support.select(some)
        one = _entries(rated, rated.offsets[1:] - 1, torch.ones_like(some))
        forgotten = fitted.forget(adapted.select(some), one)
        yield "forget", fitted.predict(forgotten, query.select(some)).mean
        yield "absorb", fitted.predict(fitted.absorb(forgotten, one), query.select(some)).mean


def _served(recommender: Recommender, side: Side) -> Tensor:
    """The figures of what a newcomer with two ratings gets recommended."""
    scale, (first, second) = recommender.scale, recommender.catalogue(partner_side(side)).ids[:2]
    ratings = {first: scale.high, second: scale.high if scale.implicit else scale.low}
    recommended = recommender.adapt(ratings, side=side).recommend(5)
    figures = [(one.score, one.deviation or 0.0, one.unknown or 0.0) for one in recommended]
    return torch.tensor(figures, dtype=torch.float64)


def _on_cpu(prediction: Prediction) -> Prediction:
    rest = (None if value is None else value.cpu() for value in (prediction.variance, prediction.noise))
    return Prediction(prediction.mean.cpu(), *rest)


def _tensors(state: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{where}{name}/")
        elif isinstance(value, Tensor):
            yield f"{where}{name}", value


def _take(prediction: Prediction, entries: Tensor) -> Prediction:
    return Prediction(
        mean=prediction.mean[entries],
        variance=None if prediction.variance is None else prediction.variance[entries],
        noise=None if prediction.noise is None else prediction.noise[entries],
    )


def _entries(support: Support, entries: Tensor, counts: Tensor) -> Support:
    """The support with only these entries, `counts` per task."""
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return replace(support, offsets=offsets, partner=support.partner[entries], rating=support.rating[entries])


def _reversed(support: Support) -> Support:
    owner = support.owner
    entries = support.offsets[:-1][owner] + support.offsets[1:][owner] - 1 - torch.arange(owner.numel())
    return _entries(support, entries, support.counts)


def _subset(attribute: str, found: tuple[str, ...], known: tuple[str, ...]) -> None:
    right = isinstance(found, tuple) and len(found) > 0 and set(found) <= set(known)
    assert right, f"{attribute} must be a tuple of some of {', '.join(known)}, found {found!r}"


def _assert_sound(prediction: Prediction, query: Query, dtype: torch.dtype) -> None:
    count = query.partner.numel()
    for field in fields(prediction):
        value = getattr(prediction, field.name)
        if value is None and field.name != "mean":
            continue
        assert value.shape == (count,), f"{field.name} has shape {list(value.shape)}, expected [{count}]"
        assert value.dtype == dtype, f"{field.name} is {value.dtype}, expected {dtype}"
        assert value.isfinite().all(), f"{field.name} must be finite"
    if prediction.variance is not None:
        assert (prediction.variance > 0).all(), "variance must be positive"
    if prediction.noise is not None:
        assert prediction.variance is not None, "noise is a part of the variance: there must be one"
        right = (prediction.noise >= 0) & (prediction.noise <= prediction.variance * (1 + 1e-6))
        assert right.all(), "noise must be from 0 to the variance"


def _assert_equal(found: Prediction, expected: Prediction, when: str) -> None:
    for field in fields(Prediction):
        before, after = getattr(expected, field.name), getattr(found, field.name)
        same = before is after is None or torch.equal(before, after)
        assert same, f"{field.name} must be the same {when}, bit for bit"


def _assert_unchanged(now: Any, before: Any, method: str, where: str) -> None:
    if isinstance(now, Tensor):
        assert torch.equal(now, before), f"{method} must not change {where}"
    elif is_dataclass(now):
        for field in fields(now):
            _assert_unchanged(
                getattr(now, field.name), getattr(before, field.name), method, f"{where}.{field.name}"
            )
    elif isinstance(now, Mapping):
        for name in before:
            _assert_unchanged(now[name], before[name], method, f"{where}[{name!r}]")
    elif isinstance(now, (bool, int, float, str)):
        assert now == before, f"{method} must not change {where}"
