"""Known answers: what an algorithm must compute, by something independent of it.

A module has the answers of one family or ability, as ``checks(algorithm)``; `ORACLES` says whom they concern. What is
known of one algorithm alone, its class says in a class method ``oracles``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from metarec.learning import (
    Algorithm,
    AmortisedHeadLearner,
    AmortisedLearner,
    FactorHeadLearner,
    GradientMetaLearner,
    LatentLearner,
    ModeLearner,
    PosteriorLearner,
    SamplingLearner,
    Updatable,
)
from metarec.testing.oracles import (
    amortised,
    amortised_head,
    factor_head,
    gradient,
    mode,
    posterior,
    sampling,
    updatable,
)
from metarec.testing.oracles.check import Check, distance

__all__ = ["ORACLES", "Check", "HasOracles", "distance", "verify"]

Checks = Callable[[type[Algorithm]], Iterator[Check]]

ORACLES: tuple[tuple[type, Checks], ...] = (
    (FactorHeadLearner, factor_head.checks),
    (GradientMetaLearner, gradient.checks),
    (AmortisedHeadLearner, amortised_head.checks),
    (AmortisedLearner, amortised.checks),
    (LatentLearner, amortised.latent_checks),
    (ModeLearner, mode.checks),
    (PosteriorLearner, posterior.checks),
    (SamplingLearner, sampling.checks),
    (Updatable, updatable.checks),
)
"""A base class or an ability, and what is known of every algorithm that has it."""


@runtime_checkable
class HasOracles(Protocol):
    """An algorithm of which more is known than of its family."""

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """What is known of it."""
        ...


def verify(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold an algorithm to all answers that are known of it.

    Parameters
    ----------
    algorithm : type[Algorithm]
        Its bases, abilities and class attributes say what is known.

    Yields
    ------
    Check
        None, where nothing is known: of a trivial predictor, say.
    """
    for concerned, checks in ORACLES:
        if issubclass(algorithm, concerned):
            yield from checks(algorithm)
    if issubclass(algorithm, HasOracles):
        yield from algorithm.oracles()
