"""Attributes say where a new entity begins among the factors, ratings where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from metarec import Algorithm, hookimpl
from metarec.learning import FactorHeadLearner, PosteriorLearner
from metarec.learning.posterior import Posterior
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, fitted, repeated, tasks_of
from metarec.testing.oracles.factor_head import SMALL, seen


class MetaContent(FactorHeadLearner, PosteriorLearner):
    """A content prior on the factors of a new entity, and the exact posterior as its ratings come.

    The known entities have the biases and factors of a factorisation. Of a new one with attributes c,
    ``θ ~ N(m₀(c), P⁻¹)`` with a network m₀; given its support,

        Λ = P + Σ φφᵀ/σ²,   mean = Λ⁻¹ (P m₀(c) + Σ φ r/σ²),

    so that without a rating it is the content prior, and with many the collaborative answer. Networks, P and σ² are
    trained to predict the query of known entities that are taken for new. A partner that is new is placed by a network
    of its own attributes. Where feedback is implicit a choice counts as an observation of log odds of 1, with σ² as
    it serves the query best; no variance is given.

    References
    ----------
    Agarwal, Chen 2009. Regression-based latent factor models. Harrison, Sharma, Pavone 2018. Meta-learning priors for
    efficient online Bayesian regression.
    """

    name = "meta-content"

    def place(self, support: Support) -> Posterior:
        """The posterior of each task's θ."""
        return self.posterior(support)

    adapt = PosteriorLearner.adapt

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Many ratings lead to weighted least squares on the factors; content adds one part in their number."""
        learner = fitted(cls, SMALL)
        for scenario in ("new-user", "new-item"):
            support = tasks_of(scenario).support
            support = support.select((support.counts >= 6).nonzero().flatten())
            near, nearer = (learner._away(repeated(support, times)) for times in (10_000, 100_000))
            yield Check(f"many ratings are least squares on the factors ({scenario})", nearer, 0.05)
            yield Check(f"ten times as many leave a tenth ({scenario})", abs(10 * nearer / near - 1), 0.3)

    @torch.no_grad()
    def _away(self, support: Support) -> float:
        """How far the predictions for the support are from least squares, in deviations of the noise, at most."""
        _, noise = self.features(support.side, support, support.partners)
        worst = 0.0
        for task, (features, target) in enumerate(seen(self, support)):
            root = noise[support.owner == task].rsqrt().unsqueeze(1)
            best = torch.linalg.lstsq(root * features, root * target.unsqueeze(1)).solution
            left = root * features @ (self.adapt(support).mean[task].unsqueeze(1) - best)
            worst = max(worst, float(left.abs().max()))
        return worst


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MetaContent`."""
    register(MetaContent)
