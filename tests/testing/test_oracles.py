"""Every known answer finds a wrong variant out; that the sound ones pass, their conformance suites say."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace

import pytest
import torch

from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.plugins.algorithms.anil import ANIL
from metarec.plugins.algorithms.imaml import IMAML
from metarec.plugins.algorithms.importance import Importance
from metarec.plugins.algorithms.maml import MAML
from metarec.plugins.algorithms.reptile import Reptile
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


class CountsItsSupportTwice(Importance):
    def drawn(self, likelihood, count):
        return super().drawn(likelihood.plus(likelihood), count)


class ForgetsItsWeights(Importance):
    def drawn(self, likelihood, count):
        draws = super().drawn(likelihood, count)
        return replace(draws, log_weight=torch.zeros_like(draws.log_weight).log_softmax(1))


WRONG = [
    DropsTheSecondOrder,
    ForgetsTheWeights,
    AdaptsEverything,
    WalksAway,
    SolvesTooLittle,
    DeviationForVariance,
    NoisePerRatingLost,
    AbsorbsTwice,
    CountsItsSupportTwice,
    ForgetsItsWeights,
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
