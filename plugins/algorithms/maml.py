"""MAML: gradient steps from a learnt starting point, trained through the steps."""

from __future__ import annotations

from collections.abc import Callable

from metarec import Algorithm, hookimpl
from metarec.learning import GradientMetaLearner


class MAML(GradientMetaLearner):
    """Gradient steps from a learnt starting point, trained through the steps.

    From the parameters θ of the head that all tasks share, each task takes K steps on its support,
    ``φ_{k+1} = φ_k − α ∇L_S(φ_k)`` with ``φ_0 = θ``; training follows the exact gradient of the query's loss,
    ``∇_θ L_Q(φ_K) = Π_k (I − α ∇²L_S(φ_k)) ∇L_Q(φ_K)``. The embeddings are shared by all tasks and take no steps.

    References
    ----------
    Finn, Abbeel, Levine 2017. Model-agnostic meta-learning for fast adaptation of deep networks, algorithm 2.
    """

    name = "maml"


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MAML`."""
    register(MAML)
