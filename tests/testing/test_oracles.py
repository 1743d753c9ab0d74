"""Every known answer finds a wrong variant out; that the sound ones pass, their conformance suites say."""

from __future__ import annotations

import math
from copy import copy, deepcopy
from dataclasses import replace

import pytest
import torch

from metarec.plugins.algorithms.abml import ABML
from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.plugins.algorithms.anil import ANIL
from metarec.plugins.algorithms.bmaml import BMAML
from metarec.plugins.algorithms.ensemble import Ensemble
from metarec.plugins.algorithms.hypernet import Hypernet
from metarec.plugins.algorithms.ials import IALS
from metarec.plugins.algorithms.imaml import IMAML
from metarec.plugins.algorithms.importance import Importance
from metarec.plugins.algorithms.item_knn import ItemKNN
from metarec.plugins.algorithms.laplace import Laplace
from metarec.plugins.algorithms.lwa import LWA
from metarec.plugins.algorithms.maml import MAML
from metarec.plugins.algorithms.map import MAP
from metarec.plugins.algorithms.meta_cf import MetaCF
from metarec.plugins.algorithms.meta_content import MetaContent
from metarec.plugins.algorithms.metaemb import MetaEmb
from metarec.plugins.algorithms.mf import MatrixFactorisation
from metarec.plugins.algorithms.mwuf import MWUF
from metarec.plugins.algorithms.platipus import Platipus
from metarec.plugins.algorithms.reptile import Reptile
from metarec.plugins.algorithms.transformer import Transformer
from metarec.plugins.algorithms.versa import Versa
from metarec.testing import Check, verify


class DropsTheSecondOrder(MAML):
    def loss(self, tasks):
        first = copy(self)
        first.order = 1
        return MAML.loss(first, tasks)


class ForgetsTheWeights(MAML):
    def weights(self, lists):
        return torch.ones_like(super().weights(lists)) / 10


class AdaptsEverything(ANIL):
    def head(self, side):
        head = super().head(side)
        return type(head)(head.layers, head.activation, head.loss, "all")


class WalksAway(Reptile):
    def _way(self, side, ends):
        return {part: -way for part, way in super()._way(side, ends).items()}


class SolvesTooLittle(IMAML):
    def backward(self, tasks):
        self.cg_steps = 1
        return super().backward(tasks)


class DeviationForVariance(Alpaca):
    def predicted(self, posterior, query):
        mean, unknown, noise = super().predicted(posterior, query)
        return mean, unknown.sqrt(), noise


class NoisePerRatingLost(Alpaca):
    def features(self, side, lists, partners):
        features, noise = super().features(side, lists, partners)
        return features, noise.mean().expand_as(noise)


class AbsorbsTwice(Alpaca):
    def absorb(self, adapted, rating):
        return super().absorb(super().absorb(adapted, rating), rating)


class StopsShortOfTheMode(MAP):
    def place(self, support):
        placed = super().place(support)
        return replace(placed, placed=placed.prior + 0.9999 * (placed.placed - placed.prior))


class CutsTheModeFromItsPrior(MAP):
    def place(self, support):
        placed = super().place(support)
        return replace(placed, placed=placed.placed.detach())


class WidensTheGaussian(Laplace):
    def posterior(self, support):
        made = super().posterior(support)
        return replace(made, cholesky=0.9999 * made.cholesky)


class LosesTheWidth(Laplace):
    def conditioned(self, support, mean, precision):
        made = super().conditioned(support, mean, precision)
        return made._replace(log_evidence=made.log_evidence + 0.01)


class TakesThePosteriorsVariance(ABML):
    def climbed(self, likelihood):
        mean, _ = super().climbed(likelihood)
        covariance = torch.linalg.inv(likelihood.precision + torch.eye(self.rank).double())
        return mean, covariance.diagonal(dim1=1, dim2=2)


class LosesTheDivergence(ABML):
    def loss(self, tasks):
        return super().loss(tasks) - 1e-6


class LosesTheRepulsion(BMAML):
    def drawn(self, likelihood, count):
        draws = super().drawn(likelihood, count)
        mean = draws.points.mean(1, keepdim=True)
        return replace(draws, points=mean + 0.9999 * (draws.points - mean))


class HalvesTheGradient(BMAML):
    def loss(self, tasks):
        loss = super().loss(tasks)
        return (loss + loss.detach()) / 2


class StartsAtThePrior(Platipus):
    def adapt(self, support):
        bare = deepcopy(self)
        bare.rates(support.side).log_rates.data[1] = -50.0
        return Platipus.adapt(bare, support)


class ForgetsTheStepsOfTheAxes(Platipus):
    def _pushed(self, likelihood, rate, start):
        mean, factor = super()._pushed(likelihood, rate, start)
        return mean, torch.eye(self.rank).to(factor).expand_as(factor)


class CountsItsSupportTwice(Importance):
    def drawn(self, likelihood, count):
        return super().drawn(likelihood.plus(likelihood), count)


class ForgetsItsWeights(Importance):
    def drawn(self, likelihood, count):
        draws = super().drawn(likelihood, count)
        return replace(draws, log_weight=torch.zeros_like(draws.log_weight).log_softmax(1))


class NeverTurns(MetaCF):
    def _turned(self, heads, side):
        return heads


class StepsTooFar(MetaCF):
    def slope(self, support):
        slope = super().slope(support)
        return lambda heads: 1.001 * slope(heads)


class LosesTheBias(MetaContent):
    def features(self, side, lists, partners):
        features, noise = super().features(side, lists, partners)
        return torch.cat([torch.zeros_like(features[:, :1]), features[:, 1:]], 1), noise


class KeepsItsPrior(MetaContent):
    def posterior(self, support):
        made = super().posterior(support)
        return replace(made, mean=(made.mean + 1e-3 * made.prior) / (1 + 1e-3))


class CutsTheStepFromItsStart(MetaEmb):
    def slope(self, support):
        slope = super().slope(support)
        return lambda heads: slope(heads.detach())


class ForgetsTheColdLoss(MetaEmb):
    def loss(self, tasks):
        return self.loss_of(self.place(tasks.support), tasks)


class TakesWhatItDislikes(LWA):
    def place(self, support):
        return super().place(replace(support, rating=2 * self.mean_ - support.rating))


class CountsTheRatings(LWA):
    def place(self, support):
        placed = super().place(support)
        many = support.counts.clamp(min=1).unsqueeze(1)
        return replace(placed, placed=placed.prior + many * (placed.placed - placed.prior))


class ShiftsBeforeItScales(MWUF):
    def _shift(self, support):
        return self._scaling(support) * super()._shift(support)


class ScalesTheStartAlone(MWUF):
    def place(self, support):
        placed = super().place(support)
        bare = copy(self)
        bare._scaling = lambda support: torch.ones(1, dtype=torch.float64)
        return replace(
            placed, placed=MWUF.place(bare, support).placed + placed.prior - self.head("user").start
        )


class LosesTheRidge(MatrixFactorisation):
    def _folded_in(self, side, observations, offsets):
        bare = observations._replace(ridge=torch.zeros_like(observations.ridge))
        return super()._folded_in(side, bare, offsets)


class ForgetsWhatWasNotChosen(IALS):
    def _solved(self, table, lists):
        return super()._solved(0.9 * table, lists)


class LosesTheShrinkage(ItemKNN):
    def fit(self, train, *, valid=None, run=None):
        bare = copy(self)
        bare.shrinkage = 0.0
        ItemKNN.fit(bare, train, valid=valid, run=run)
        return self.restore(bare.state())


class MixesTheMeansAlone(Ensemble):
    def predict(self, adapted, query):
        prediction = super().predict(adapted, query)
        return replace(prediction, variance=prediction.variance * 0.99)


class QueriesSeeEachOther(Transformer):
    def decoded(self, context, query, tasks=None):
        outputs = super().decoded(context, query, tasks)
        return outputs + 0.1 * query.mean(outputs[0, :, 0]).nan_to_num()[query.owner].view(1, -1, 1)


class ForgetsItsRatings(Transformer):
    def context(self, support, known=None):
        return super().context(replace(support, rating=torch.full_like(support.rating, self.mean_)), known)


class DeviationsForVariances(Versa):
    def read(self, reader, told):
        return told.mean, torch.diag_embed(1 / told.precision)


class DividesByTheVariance(Versa):
    def observed(self, support):
        features, surprise, noise = super().observed(support)
        return features, surprise, noise.square()


class TakesChoicesForCertain(Versa):
    def observed(self, support):
        features, surprise, noise = super().observed(support)
        return features, surprise, noise.clamp(max=4) if self.implicit_ else noise


class AddsWithoutRatings(Versa):
    def told(self, support):
        told = super().told(support)
        return told._replace(mean=told.mean + 1e-6 * told.precision)


class ForgetsAsItReads(Versa):
    def read(self, reader, told):
        return told.mean, torch.diag_embed(told.precision.sqrt())


class LosesTheColumns(Hypernet):
    def read(self, reader, told):
        mean, root = super().read(reader, told)
        return mean, root[..., self.columns :]


class StepsDownhill(Hypernet):
    def read(self, reader, told):
        mean, root = super().read(reader, told)
        return 2 * told.mean - mean, root


class StepsWithoutTheMetric(Hypernet):
    def read(self, reader, told):
        _, root = super().read(reader, told)
        return told.likelihood.climbed(told.mean, lambda slope: slope, self.inner_steps), root


WRONG = [
    DeviationsForVariances,
    DividesByTheVariance,
    TakesChoicesForCertain,
    AddsWithoutRatings,
    ForgetsAsItReads,
    LosesTheColumns,
    StepsDownhill,
    StepsWithoutTheMetric,
    QueriesSeeEachOther,
    ForgetsItsRatings,
    DropsTheSecondOrder,
    ForgetsTheWeights,
    AdaptsEverything,
    WalksAway,
    SolvesTooLittle,
    DeviationForVariance,
    NoisePerRatingLost,
    AbsorbsTwice,
    StopsShortOfTheMode,
    CutsTheModeFromItsPrior,
    WidensTheGaussian,
    LosesTheWidth,
    TakesThePosteriorsVariance,
    LosesTheDivergence,
    LosesTheRepulsion,
    HalvesTheGradient,
    StartsAtThePrior,
    ForgetsTheStepsOfTheAxes,
    CountsItsSupportTwice,
    ForgetsItsWeights,
    NeverTurns,
    StepsTooFar,
    LosesTheBias,
    KeepsItsPrior,
    CutsTheStepFromItsStart,
    ForgetsTheColdLoss,
    TakesWhatItDislikes,
    CountsTheRatings,
    ShiftsBeforeItScales,
    ScalesTheStartAlone,
    LosesTheRidge,
    ForgetsWhatWasNotChosen,
    LosesTheShrinkage,
    MixesTheMeansAlone,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_variant_fails(wrong):
    assert not all(check.passed for check in verify(wrong))


def test_an_algorithm_may_bring_answers_of_its_own():
    class Mine(Reptile):
        @classmethod
        def oracles(cls):
            yield Check("mine", 0.5, 0.1)

    assert [check.name for check in verify(Mine) if not check.passed] == ["mine"]


def test_an_error_that_is_no_number_fails():
    assert not Check("nothing", math.nan, 1.0).passed
