"""MeLU: preferences from content, whose decision layers adapt."""

from __future__ import annotations

from collections.abc import Callable

from metarec import Algorithm, hookimpl
from metarec.learning import GradientMetaLearner


class MeLU(GradientMetaLearner):
    """Preferences from content, whose decision layers adapt.

    Users and items have no embedding but that of their attributes, so what is learnt of these holds for new ones. The
    decision layers, two hidden ones of 64 units and the output, take a task's steps; the embeddings, of 32 numbers, are
    shared. Training goes through the steps, as in `maml`.

    Unlike the paper's, the embeddings of an entity's attributes are added up rather than put side by side, and the
    layers see their product with the partner's too, and how well a known partner is liked: content alone loses to that.

    References
    ----------
    Lee, Im, Jang, Cho, Chung 2019. MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation,
    section 3.
    """

    name = "melu"
    identity = False


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MeLU`."""
    register(MeLU)
