"""iMAML: heads that are optimal on their support and near a learnt centre, trained by implicit gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, gaussian_nll_loss

from metarec import Algorithm, Range, hookimpl
from metarec.data import Side
from metarec.learning import GradientMetaLearner
from metarec.ops import InnerSteps, inner_loop_state
from metarec.tasks import Ragged, Support, Tasks


class IMAML(GradientMetaLearner):
    """Heads that are optimal on their support and near a learnt centre, trained by implicit gradients.

    A task's head is ``φ* = argmin_φ L_S(φ) + λ/2 ‖φ − θ‖²``, to which K gradient steps lead from θ, the parameters that
    all tasks share. Training follows the derivative of the minimum itself, whatever way leads there: with H the Hessian
    of L_S at φ*,

        v = (H + λI)⁻¹ ∇L_Q(φ*),   ∇_θ = λ v = (I + H/λ)⁻¹ ∇L_Q(φ*),

    and, as the embeddings shape both losses, ``∂L_Q − vᵀ ∂∇L_S(φ*)`` in these. Conjugate gradients find v; they start
    from ``∇L_Q / λ``, the first-order answer, and stop for a task whose H + λI turns out not to be positive definite.

    Parameters
    ----------
    inner_steps : int, default 16
        Steps K.
    pull : float, default 1
        Strength λ of the pull to the centre.
    cg_steps : int, default 5
        Steps of conjugate gradients.

    References
    ----------
    Rajeswaran, Finn, Kakade, Levine 2019. Meta-learning with implicit gradients, algorithms 1 and 2.
    """

    name = "imaml"
    trains_by = "optimum"

    def __init__(
        self,
        *,
        inner_steps: Annotated[int, Range(0, 1000)] = 16,
        pull: Annotated[float, Range(1e-3, 1e3, log=True)] = 1.0,
        cg_steps: Annotated[int, Range(0, 1000)] = 5,
        **options: Any,
    ) -> None:
        super().__init__(inner_steps=inner_steps, **options)
        self.pull = pull
        self.cg_steps = cg_steps

    def steps(self, side: Side) -> InnerSteps:
        """Steps that are pulled to the centre."""
        return replace(super().steps(side), pull=self.pull)

    def backward(self, tasks: Tasks) -> Tensor:
        """Add the implicit gradients of a batch to the weights', and return its loss."""
        support, query, side = tasks.support, tasks.query, tasks.support.side
        entity = self.towers.entities(side, support.entities)
        inputs = self.towers.inputs(side, entity, support, support.partners)
        asked = self.towers.inputs(side, entity, query, query.partners)
        heads = self._optimal_heads(support, inputs.detach()).requires_grad_()
        loss = self.query_loss(self._outputs_of(heads, side, query, asked).squeeze(1), tasks.rating)
        (slope,) = torch.autograd.grad(loss, heads, retain_graph=True)
        errors = self._errors(self._outputs_of(heads, side, support, inputs), support.rating)
        within = (self.weights(support) * errors).sum()
        (descent,) = torch.autograd.grad(within, heads, create_graph=True)
        balance = descent + self.pull * (heads - self._flat(side))  # zero at the optimum

        def product(vectors: Tensor) -> Tensor:
            pushed: Tensor = torch.autograd.grad(balance, heads, vectors, retain_graph=True)[0]
            return pushed

        solved = conjugate_gradients(product, slope, slope / self.pull, self.cg_steps)
        torch.autograd.backward([loss, balance], [None, -solved])
        return loss.detach()

    def _optimal_heads(self, support: Support, inputs: Tensor) -> Tensor:
        """float [T, p]: the parameters that the steps lead each task to, weight and bias of layer by layer."""
        side, target = support.side, self.standardised(support.rating)
        weights, offsets = self.weights(support), support.offsets
        ends = inner_loop_state(self.head(side), self.steps(side), inputs, target, offsets, weights=weights)
        first = self.towers.layers(side)[0][0].detach()
        way = _padded(support, ends.coefficients).mT @ _padded(support, ends.rows)
        return torch.cat([(first - way).flatten(1), ends.parameters], 1)

    def _flat(self, side: Side) -> Tensor:
        """float [p]: the parameters that all heads start from, in the same order."""
        return torch.cat([part.flatten() for layer in self.towers.layers(side) for part in layer])

    def _outputs_of(self, heads: Tensor, side: Side, lists: Ragged, inputs: Tensor) -> Tensor:
        """float [n, outputs]: what each task's head says of its entries of `lists`."""
        layers = self.towers.layers(side)
        parts = heads.split([part.numel() for layer in layers for part in layer], 1)
        values = _padded(lists, inputs)
        for number, (weight, _) in enumerate(layers):
            own, bias = parts[2 * number].unflatten(1, weight.shape), parts[2 * number + 1].unsqueeze(1)
            values = torch.baddbmm(bias, values if number == 0 else values.relu(), own.mT)
        return _listed(lists, values)

    def _errors(self, outputs: Tensor, rating: Tensor) -> Tensor:
        """float [n]: the losses that the steps descend."""
        target = self.standardised(rating)
        if self.implicit_:
            return binary_cross_entropy_with_logits(outputs[:, 0], target, reduction="none")
        if self.uncertainty:
            return gaussian_nll_loss(outputs[:, 0], target, outputs[:, 1].exp(), reduction="none")
        return (outputs[:, 0] - target).square() / 2


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Solve ``A_t x_t = b_t`` for many symmetric A_t at once.

    Parameters
    ----------
    product : function of float [T, p] to float [T, p]
        ``A_t x_t`` of each t.
    target : float [T, p]
        The b_t.
    start : float [T, p]
        Where to start.
    steps : int
        How many to make. A t whose residual is zero, or that meets a direction d with ``dᵀ A d ≤ 0``, makes no more.

    Returns
    -------
    float [T, p]
    """
    solution, residual = start, target - product(start)
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        pushed = product(direction)
        curvature = (direction * pushed).sum(1, keepdim=True)
        length = torch.where(curvature > 0, square / curvature, 0.0)
        solution, residual = solution + length * direction, residual - length * pushed
        left = residual.square().sum(1, keepdim=True)
        direction = torch.where(length > 0, residual + left / square * direction, 0.0)
        square = left
    return solution


def _padded(lists: Ragged, rows: Tensor) -> Tensor:
    """float [T, longest, d]: the rows (float [n, d]) of each list, and zeros."""
    place = torch.arange(int(lists.counts.max()) if len(lists) else 0, device=rows.device)
    entry = lists.offsets[:-1, None] + place
    entry = torch.where(place < lists.counts[:, None], entry, len(rows))
    ended = torch.cat([rows, rows.new_zeros(1, rows.size(1))])
    return ended.index_select(0, entry.flatten()).view(*entry.shape, rows.size(1))


def _listed(lists: Ragged, rows: Tensor) -> Tensor:
    """float [n, d]: the rows (float [T, longest, d]) of each list without what pads them."""
    within = torch.arange(lists.partner.numel(), device=rows.device) - lists.offsets[lists.owner]
    return rows.flatten(0, 1).index_select(0, lists.owner * rows.size(1) + within)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `IMAML`."""
    register(IMAML)
