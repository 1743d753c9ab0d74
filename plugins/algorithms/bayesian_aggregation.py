"""Bayesian aggregation: every rating is an observation of what the task is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import softplus

from metarec import Adapted, Algorithm, hookimpl
from metarec.learning import Baseline, EntityEmbedding, Latent, LatentLearner, LatentNetwork, condition
from metarec.tasks import Ragged, Support


class BayesianAggregation(LatentLearner):
    """Every rating is an observation of what the task is.

    A network makes of each rating j of a support, partner and rating, an observation ``v_j = z + N(0, diag(1 / w_j))``
    of the task's z ~ N(0, I), so that

        q(z | S) = N(Σ_j w_j v_j / p, diag(1 / p)),   p = 1 + Σ_j w_j:

    exact, in any order, the surer the more ratings there are, and one rating can be taken in or back without the
    others. It minimises the bound of `LatentLearner`, −1/n Σ_t log 1/L Σ_l p(Q_t | z_tl).

    References
    ----------
    Volpp, Flürenbrock, Großberger, Daniel, Neumann 2021. Bayesian context aggregation for neural processes,
    equations 8 and 10.
    """

    name = "bayesian-aggregation"

    def network(self, entity: EntityEmbedding, partner: EntityEmbedding, baseline: Baseline) -> LatentNetwork:
        """A token is an observation: its value, and what its precision is the softplus of."""
        return LatentNetwork(
            entity,
            partner,
            baseline,
            size=self.size,
            latent=self.latent,
            hidden=self.hidden,
            tokens=2 * self.latent,
            outputs=self.outputs,
        )

    def read(
        self, network: LatentNetwork, entity: Tensor, lists: Ragged, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By Gaussian conditioning."""
        value, weight = tokens.chunk(2, 1)
        return condition(lists, value, softplus(weight))

    def absorb(self, adapted: Adapted, rating: Support) -> Latent:
        """One more observation per task."""
        return self._updated(adapted, rating, 1)

    def forget(self, adapted: Adapted, rating: Support) -> Latent:
        """One observation less per task."""
        return self._updated(adapted, rating, -1)

    def _updated(self, adapted: Adapted, rating: Support, sign: int) -> Latent:
        assert isinstance(adapted, Latent)
        one = self.adapt(rating)
        precision = adapted.precision + sign * (one.precision - 1)
        mean = (adapted.precision * adapted.mean + sign * one.precision * one.mean) / precision
        return replace(adapted, mean=mean, precision=precision)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `BayesianAggregation`."""
    register(BayesianAggregation)
