"""Algorithms with one bug each, made of the sound one in examples/every_ability.py."""

import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import metarec
from metarec import Adapted, Prediction
from metarec.learning import Level, LevelAlgorithm

sound = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "every_ability.py"))
RunningMean, Sums = sound["RunningMean"], sound["Sums"]


class BatchOrder(RunningMean):
    def predict(self, adapted, query):
        prediction = super().predict(adapted, query)
        return replace(prediction, mean=prediction.mean + 0.01 * query.owner)


class SeesOtherTasks(RunningMean):
    def adapt(self, support):
        sums = super().adapt(support)
        return replace(sums, total=sums.total - sums.total.sum() / 100)


class SupportOrder(RunningMean):
    def adapt(self, support):
        sums, first = super().adapt(support), support.first(1)
        return replace(sums, total=sums.total + first.sum(first.rating))


class ChangesWhatItFitted(RunningMean):
    def adapt(self, support):
        self.mean_ += 0.1
        return super().adapt(support)


class Caches(RunningMean):
    def adapt(self, support):
        self.last_ = support.rating
        return super().adapt(support)


class HidesWhatItLearns(RunningMean):
    def fit(self, train, *, valid=None, run=metarec.Run()):
        self.level = 1.0
        return super().fit(train, run=run)


class LosesWhatItRestores(RunningMean):
    def restore(self, state):
        return super().restore({**state, "noise_": state["noise_"].round()})


class CannotBeSaved(RunningMean):
    def fit(self, train, *, valid=None, run=metarec.Run()):
        self.things_ = [1, 2]
        return super().fit(train, run=run)


class OnePerTask(RunningMean):
    def predict(self, adapted, query):
        return Prediction(self._mean(adapted))


class NegativeVariance(RunningMean):
    def predict(self, adapted, query):
        prediction = super().predict(adapted, query)
        return Prediction(prediction.mean, -prediction.variance)


class NoiseAboveVariance(RunningMean):
    def predict(self, adapted, query):
        prediction = super().predict(adapted, query)
        return replace(prediction, noise=prediction.variance * 2)


class NoiseAlone(RunningMean):
    def predict(self, adapted, query):
        return replace(super().predict(adapted, query), variance=None)


class PlainMean(LevelAlgorithm):
    name = "plain-mean"
    feedback = ("explicit",)

    def fit(self, train, *, valid=None, run=metarec.Run()):
        self.variance_ = 1.0
        return self

    def adapt(self, support):
        mean = support.mean(support.rating)
        return Level(mean, torch.full_like(mean, self.variance_))


class StaysOnTheCPU(PlainMean):
    name = "stays-on-the-cpu"

    def adapt(self, support):
        total = torch.zeros(len(support)).index_add(0, support.owner, support.rating)
        mean = total / support.counts.clamp(min=1)
        return Level(mean, torch.full_like(mean, self.variance_))


class RestoresOnTheCPU(RunningMean):
    def restore(self, state):
        return super().restore({**state, "mean_": state["mean_"].cpu()})


class NeedsAQuery(RunningMean):
    def predict(self, adapted, query):
        query.partner.max()
        return super().predict(adapted, query)


class ChangesSupport(RunningMean):
    def adapt(self, support):
        support.rating.sub_(self.mean_)
        return Sums(support.sum(support.rating), support.counts.to(support.rating.dtype))


class ChangesAdapted(RunningMean):
    def predict(self, adapted, query):
        adapted.count.add_(self.strength)
        return super().predict(adapted, query)


class ChangesTrain(RunningMean):
    def fit(self, train, *, valid=None, run=metarec.Run()):
        train.rating.clamp_(min=1.5)
        return super().fit(train, run=run)


class RoundsAnOption(RunningMean):
    def __init__(self, *, strength: float = 5.4) -> None:
        self.strength = round(strength)


class LearnsInInit(RunningMean):
    def __init__(self, *, strength: float = 5.0) -> None:
        self.strength = strength
        self.mean_ = torch.tensor(3.0)


class FitReturnsNothing(RunningMean):
    def fit(self, train, *, valid=None, run=metarec.Run()):
        super().fit(train, run=run)


class Unseeded(RunningMean):
    def fit(self, train, *, valid=None, run=metarec.Run()):
        super().fit(train, run=run)
        self.mean_ = self.mean_ + 0.01 * torch.rand(())
        return self


class SinglePrecision(RunningMean):
    def predict(self, adapted, query):
        prediction = super().predict(adapted, query)
        return replace(prediction, mean=prediction.mean.float())


@dataclass(frozen=True)
class Listed(Adapted):
    total: list
    count: list


class KeepsAList(RunningMean):
    def adapt(self, support):
        sums = super().adapt(support)
        return Listed(sums.total.tolist(), sums.count.tolist())

    def predict(self, adapted, query):
        dtype = query.partners.features.values.dtype
        sums = Sums(torch.tensor(adapted.total, dtype=dtype), torch.tensor(adapted.count, dtype=dtype))
        return super().predict(sums, query)


class WrongFactors(RunningMean):
    def candidate_factors(self, side, partners):
        return 1.01 * super().candidate_factors(side, partners)


class DrawsTheNoiseToo(RunningMean):
    def draw(self, adapted, query, count, *, generator):
        drawn = super().draw(adapted, query, count, generator=generator)
        return drawn + self.noise_.sqrt() * torch.randn(drawn.shape, generator=generator)


class DrawsFromThePrior(RunningMean):
    def draw(self, adapted, query, count, *, generator):
        nothing = Sums(torch.zeros_like(adapted.total), adapted.count)
        return super().draw(nothing, query, count, generator=generator)


class DrawsByAnyGenerator(RunningMean):
    def draw(self, adapted, query, count, *, generator):
        return super().draw(adapted, query, count, generator=torch.default_generator)


class WrongAbsorb(RunningMean):
    def absorb(self, adapted, rating):
        return replace(super().absorb(adapted, rating), count=adapted.count)


class WrongForget(RunningMean):
    def forget(self, adapted, rating):
        return adapted


class WrongExplanation(RunningMean):
    def explain(self, adapted, support, query):
        explanation = super().explain(adapted, support, query)
        return replace(explanation, contribution=2 * explanation.contribution)


class WrongLeaveOneOut(RunningMean):
    def explain(self, adapted, support, query):
        return replace(super().explain(adapted, support, query), kind="leave-one-out")


class OneReasonOnly(RunningMean):
    def explain(self, adapted, support, query):
        return super().explain(adapted, support.first(1), query)


class UnknownScenario(RunningMean):
    scenarios = ("warm", "new-users")


class UnknownFeedback(RunningMean):
    feedback = ("explicit", "stars")
