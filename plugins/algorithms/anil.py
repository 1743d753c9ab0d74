"""ANIL: MAML whose last layer alone adapts."""

from __future__ import annotations

from collections.abc import Callable

from metarec import Algorithm, hookimpl
from metarec.learning import GradientMetaLearner


class ANIL(GradientMetaLearner):
    """MAML whose last layer alone adapts.

    The hidden layers f are shared by all tasks, as the embeddings are; a task's steps change w and b of
    ``h(x) = wᵀf(x) + b`` only. Training goes through the steps.

    References
    ----------
    Raghu, Raghu, Bengio, Vinyals 2020. Rapid learning or feature reuse? Towards understanding the effectiveness of
    MAML, section 4.
    """

    name = "anil"
    adapt_layers = "last"


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `ANIL`."""
    register(ANIL)
