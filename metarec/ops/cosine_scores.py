"""The cosine of pairs of rows of two tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.library import register


def cosine_scores(
    left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor, *, sparse_grad: bool = False
) -> Tensor:
    r"""Give the cosine of pairs of rows of two tables, such as users and items.

    With :math:`u` the row ``left_rows[p]`` of ``left`` and :math:`v` the row ``right_rows[p]`` of ``right``,

    .. math:: s_p = \frac{u^\top v}{\max(\|u\|, \epsilon) \max(\|v\|, \epsilon)}, \qquad
        \frac{\partial s_p}{\partial u} = \frac{v}{\|u\| \|v\|} - s_p \frac{u}{\|u\|^2},
        \qquad \epsilon = 10^{-12}.

    A zero vector so has similarity zero with everything. A vector no longer than :math:`\epsilon` has no direction
    to turn, and gets gradient zero.

    Parameters
    ----------
    left, right : Tensor
        The tables, ``[N, d]`` and ``[M, d]``, float32, float64 or bfloat16. Those of bfloat16 are computed with in
        float32.
    left_rows, right_rows : Tensor
        The row of each pair in each table, ``[P]``, int32 or int64; in any order, and any may repeat.
    sparse_grad : bool
        Whether the gradients of the tables are sparse: the distinct rows that the pairs name, ascending, and a vector
        for each (a coalesced tensor), ready for :class:`metarec.ops.RowOptimizer`. Otherwise they are dense, as
        ordinary optimizers want them.

    Returns
    -------
    Tensor
        The scores, ``[P]``, of the tables' type, or float32 for bfloat16.

    Raises
    ------
    ValueError
        If shapes or types do not fit, or a row is negative or not in its table.

    Notes
    -----
    Gradients are summed in an order that depends on the pairs alone, never on the number of threads. They take no
    memory per pair and dimension. A second derivative raises.

    On CUDA an error of the values cannot be raised without waiting for the device: a row that is not in its table stops
    it by a device-side assertion. Sparse gradients wait for the device, to learn how many rows they have.
    """
    for name, table in (("left", left), ("right", right)):
        if table.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"cosine_scores: {name} must be float32, float64 or bfloat16, got {table.dtype}")
        if table.dim() != 2:
            raise ValueError(f"cosine_scores: {name} must have two dimensions, got shape {list(table.shape)}")
    if right.dtype != left.dtype or right.device != left.device:
        raise ValueError(
            f"cosine_scores: right must be {left.dtype} on {left.device}, got {right.dtype} on {right.device}"
        )
    if right.size(1) != left.size(1):
        raise ValueError(f"cosine_scores: left has {left.size(1)} dimensions, right has {right.size(1)}")
    for name, rows in (("left_rows", left_rows), ("right_rows", right_rows)):
        if rows.dtype not in (torch.int32, torch.int64) or rows.dim() != 1 or rows.device != left.device:
            raise ValueError(
                f"cosine_scores: {name} must be int32 or int64 of one dimension on {left.device}, "
                f"got {rows.dtype} of shape {list(rows.shape)} on {rows.device}"
            )
    if left_rows.size(0) != right_rows.size(0):
        raise ValueError(
            f"cosine_scores: {left_rows.size(0)} left_rows cannot be paired with {right_rows.size(0)} right_rows"
        )
    scores: Tensor = _scores(left, right, left_rows, right_rows, sparse_grad)[0]
    return scores


def _fake_scores(left: Tensor, left_rows: Tensor) -> tuple[Tensor, Tensor]:
    scores = left.new_empty(left_rows.size(0), dtype=reference.arithmetic_type(left.dtype))
    return scores, torch.empty_like(scores)


def _fake_gradient(left: Tensor) -> Tensor:
    return left.new_empty(left.shape)


def _fake_row_gradient(left: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return left.new_empty(count, dtype=torch.int64), left.new_empty(count, left.size(1))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.sparse_grad = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward_scores(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    left, right, left_rows, right_rows, scores, inverse_norms = ctx.saved_tensors
    sides = ((left, right, left_rows, right_rows), (right, left, right_rows, left_rows))
    gradient_of = _sparse_gradient if ctx.sparse_grad else _gradient
    gradients = (
        gradient_of(gradient, scores, inverse_norms, *side) if needed else None
        for side, needed in zip(sides, ctx.needs_input_grad, strict=False)
    )
    return *gradients, None, None, None


def _sparse_gradient(
    gradient: Tensor, scores: Tensor, inverse_norms: Tensor, left: Tensor, *others: Tensor
) -> Tensor:
    rows, values = _row_gradient(gradient, scores, inverse_norms, left, *others)
    return torch.sparse_coo_tensor(rows[None], values, left.shape, is_coalesced=True, check_invariants=False)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise RuntimeError("cosine_scores can be differentiated once only")


_scores = register(
    reference.cosine_scores, fake=_fake_scores, backward=_backward_scores, setup_context=_save_for_backward
)
_gradient = register(reference.cosine_scores_gradient, fake=_fake_gradient, backward=_no_second_derivative)
_row_gradient = register(
    reference.cosine_scores_row_gradient, fake=_fake_row_gradient, backward=_no_second_derivative
)
