"""MWUF: a cold embedding is scaled by what attributes say, and shifted by whom it met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from metarec import Algorithm, Range, hookimpl
from metarec.learning import FactorHead, FactorHeadLearner, PlacedHead
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.factor_head import SMALL, descended, seen


class MWUF(FactorHeadLearner):
    """A cold embedding, warmed up by a learnt scaling and a learnt shift.

    The embedding v of a new entity begins at the average of the known ones and takes K gradient steps on its support,
    ``v ← v − α Σ_j ∇ℓ_j(v) / n``, with ℓ half the squared error, or the log loss of a choice. Then

        θ = (1 + s(c)) ∘ v + t(Σ_j φ_j / n)

    with a network s of the attributes c, the scaling, and a network t of the mean features of the partners that it
    met, the shift; both begin at 0, where θ is v. Without a rating it is the average, scaled by the attributes: there
    is nobody to see for the shift, which is 0. Networks and the features of new partners are trained to predict the
    query. Variance is that of the noise.

    Beside the paper: v is not trained with the other weights but by the K steps, from its start each time, and the
    gradient goes through them; it has a bias of its own; and users are warmed up as items are.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of the attributes; twice as many in the hidden layer of the shift.
    inner_rate : float, default 0.3
        α.
    inner_steps : int, default 5
        K.

    References
    ----------
    Zhu, Xie, Zhuang, Ge, Sun, Zhang, Lin, Cao 2021. Learning to warm up cold item embeddings for cold-start
    recommendation with meta scaling and shifting networks.
    """

    name = "mwuf"

    def __init__(
        self,
        *,
        inner_rate: Annotated[float, Range(0.0, 10.0)] = 0.3,
        inner_steps: Annotated[int, Range(0, 1000)] = 5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.inner_rate = inner_rate
        self.inner_steps = inner_steps

    def adapter(self, head: FactorHead) -> nn.Module:
        """The shift t."""
        rank = len(head.start)
        last = nn.Linear(2 * self.size, rank)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(rank, 2 * self.size), nn.ReLU(), last)

    def content(self, support: Support) -> Tensor:
        """The average, scaled by the attributes."""
        return self._scaling(support) * self.factor_head(support.side).start

    def place(self, support: Support) -> PlacedHead:
        """θ."""
        start, slope = self.factor_head(support.side).start, self.slope(support)
        count = support.counts.clamp(min=1).unsqueeze(1)
        cold = start.expand(len(support), -1)
        for _ in range(self.inner_steps):
            cold = cold - self.inner_rate * slope(cold) / count
        warm = self._scaling(support) * cold + self._shift(support)
        return PlacedHead(self.content(support), support.side, warm)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """The plain embedding after its steps, by autograd, when scaled by 1 and shifted by 0; else changed by both."""
        for feedback in cls.feedback:
            learner = fitted(cls, SMALL, implicit=feedback == "implicit")
            support = tasks_of("new-user", implicit=feedback == "implicit").support
            head = learner.factor_head("user")
            start = head.start.expand(len(support), -1)
            plain = descended(learner, support, start, learner.inner_steps, learner.inner_rate)
            scale = 1 + head.prior(head.entity(support.entities)).detach()
            error = distance(learner.adapt(support).mean_head(), scale * plain + learner._shifts(support))
            yield Check(f"head is the plain embedding, scaled and shifted ({feedback})", error, 1e-10)
            with torch.no_grad():
                for weight in (*head.prior.parameters(), *head.adapter.parameters()):
                    weight.zero_()
            error = distance(learner.adapt(support).mean_head(), plain)
            yield Check(f"scaling 1 and shift 0 leave the plain embedding ({feedback})", error, 1e-10)

    @torch.no_grad()
    def _shifts(self, support: Support) -> Tensor:
        """float [T, r]: the shift of each task, one at a time."""
        head = self.factor_head(support.side)
        nothing = torch.zeros_like(head.start)
        return torch.stack(
            [
                head.adapter(features.mean(0)) if len(features) else nothing
                for features, _ in seen(self, support)
            ]
        )

    def _scaling(self, support: Support) -> Tensor:
        """float [T, r]: 1 + s(c)."""
        head = self.factor_head(support.side)
        return 1 + cast(Tensor, head.prior(head.entity(support.entities)))

    def _shift(self, support: Support) -> Tensor:
        """float [T, r]: t of the partners' mean; 0 where there are none."""
        features, _ = self.features(support.side, support, support.partners)
        met = (support.counts > 0).unsqueeze(1)
        mean = support.sum(features) / support.counts.clamp(min=1).unsqueeze(1)
        return cast(Tensor, self.factor_head(support.side).adapter(mean)) * met


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MWUF`."""
    register(MWUF)
