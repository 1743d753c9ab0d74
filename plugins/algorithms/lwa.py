"""Linear weight adaptation: a task's classifier from the means of what it liked and of what it did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from metarec import Algorithm, hookimpl
from metarec.learning import FactorHead, FactorHeadLearner, PlacedHead
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.factor_head import SMALL, seen


class LWA(FactorHeadLearner):
    """A linear classifier whose weights combine the means of the two classes in the support.

    ``θ = m₀(c) + w₀ ∘ R₀ + w₁ ∘ R₁``, where R₁ is the mean of the features φ of the partners that the entity rated
    above the average of all training ratings, or chose, and R₀ that of the others; a class without a member has the
    mean 0. The weights w₀ and w₁, shared by all tasks of a side, and the features of new partners are learnt so that
    θᵀφ predicts the query. Without a rating θ is the content embedding m₀(c). Variance is that of the noise.

    Beside the paper: φ are the partner's factors, and only for a new one a network of its attributes; m₀(c) stands in
    the place of a bias; the weights are one for each feature, not one for all; and what θᵀφ predicts is the rating,
    its class only where feedback is implicit, of which a support has but the one class.

    References
    ----------
    Vartak, Thiagarajan, Miranda, Bratman, Larochelle 2017. A meta-learning perspective on cold-start recommendations
    for items (linear weight adaptation).
    """

    name = "lwa"

    def adapter(self, head: FactorHead) -> nn.Module:
        """w₀ and w₁."""
        zeros = torch.zeros_like(head.start)
        return nn.ParameterDict({"disliked": zeros, "liked": zeros.clone()})

    def place(self, support: Support) -> PlacedHead:
        """The content embedding and the weighted means."""
        weights = cast(nn.ParameterDict, self.factor_head(support.side).adapter)
        features, _ = self.features(support.side, support, support.partners)
        liked = (self.standardised(support.rating) > 0).to(features.dtype)
        start = self.content(support)
        placed = start
        for member, weight in ((1 - liked, weights["disliked"]), (liked, weights["liked"])):
            placed = placed + weight * _class_mean(support, features, member)
        return PlacedHead(start, support.side, placed)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """A head is the weighted sum of what its two classes are on average, one task at a time."""
        for feedback in cls.feedback:
            learner = fitted(cls, SMALL, implicit=feedback == "implicit")
            for scenario in ("new-user", "new-item"):
                support = tasks_of(scenario, implicit=feedback == "implicit").support
                error = distance(learner.adapt(support).mean_head(), learner._combined(support))
                yield Check(f"head is the weighted class means ({scenario}, {feedback})", error, 1e-10)

    @torch.no_grad()
    def _combined(self, support: Support) -> Tensor:
        weights = cast(nn.ParameterDict, self.factor_head(support.side).adapter)
        heads = []
        for head, (features, target) in zip(self.content(support), seen(self, support), strict=True):
            for weight, members in (
                (weights["disliked"], features[target <= 0]),
                (weights["liked"], features[target > 0]),
            ):
                head = head + weight * members.mean(0) if len(members) else head
            heads.append(head)
        return torch.stack(heads)


def _class_mean(support: Support, features: Tensor, member: Tensor) -> Tensor:
    """float [T, r]: the mean of the features (float [n, r]) of each task's members (float [n], 0 or 1)."""
    count: Tensor = support.sum(member).clamp(min=1)
    return support.sum(member.unsqueeze(1) * features) / count.unsqueeze(1)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `LWA`."""
    register(LWA)
