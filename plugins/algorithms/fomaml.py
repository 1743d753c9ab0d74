"""FOMAML: MAML without second derivatives."""

from __future__ import annotations

from collections.abc import Callable

from metarec import Algorithm, hookimpl
from metarec.learning import GradientMetaLearner


class FOMAML(GradientMetaLearner):
    """MAML without second derivatives.

    The steps are those of `maml`; training follows ``∇L_Q(φ_K)``, the gradient where the steps end, as if it were that
    at θ. That is cheaper, and biased.

    References
    ----------
    Finn, Abbeel, Levine 2017. Model-agnostic meta-learning for fast adaptation of deep networks, section 5.2.
    """

    name = "fomaml"
    order = 1


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `FOMAML`."""
    register(FOMAML)
