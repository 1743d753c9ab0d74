"""An epoch of stochastic gradient descent on a factorisation by cosine or dot product."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.library import register


def cosine_sgd_epoch_(
    users: Tensor,
    items: Tensor,
    user_biases: Tensor,
    item_biases: Tensor,
    head: Tensor,
    user: Tensor,
    item: Tensor,
    rating: Tensor,
    *,
    lr: float,
    l2: float = 0.0,
    similarity: Literal["cosine", "dot"] = "cosine",
    loss: Literal["squared", "logistic"] = "squared",
    seed: int = 0,
    head_lr: float | None = None,
) -> Tensor:
    r"""Make one step of gradient descent on each rating, in place, in a random order.

    A rating :math:`r` of user :math:`u` and item :math:`v` is predicted as

    .. math:: \hat r = a \, s(u, v) + b + b_u + b_v, \qquad
        s(u, v) = \frac{u^\top v}{\max(\|u\|, \epsilon) \max(\|v\|, \epsilon)} \ \text{or}\ u^\top v,
        \qquad \epsilon = 10^{-12},

    with the learnt scale :math:`a` and bias :math:`b` in ``head``. A step moves all of :math:`u, v, b_u, b_v` along
    :math:`-\eta (\nabla L + \lambda \, \cdot)`, and :math:`a, b` along :math:`-\eta_h \nabla L`, where :math:`\eta` is
    ``lr``, :math:`\eta_h` is ``head_lr``, :math:`\lambda` is ``l2``, and :math:`L` is
    :math:`\tfrac12 (\hat r - r)^2` or, for ratings from 0 to 1, :math:`\log(1 + e^{\hat r}) - r \hat r`.
    A vector no longer than :math:`\epsilon` has no direction to turn.

    Parameters
    ----------
    users, items : Tensor
        The tables, ``[N, d]`` and ``[M, d]``, float32, float64 or bfloat16, contiguous; changed in place, as the next
        three are. Those of bfloat16 are computed with in float32.
    user_biases, item_biases : Tensor
        Biases, ``[N]`` and ``[M]``, of the type of the tables or, beside bfloat16, float32, as the next two are.
    head : Tensor
        Scale and bias, ``[2]``. Good to begin with: 1 and the mean rating.
    user, item : Tensor
        The user and the item of each rating, ``[n]``, int32 or int64.
    rating : Tensor
        The ratings, ``[n]``.
    lr, l2 : float
        Learning rate and weight of the penalty.
    similarity : {"cosine", "dot"}
        Which :math:`s`.
    loss : {"squared", "logistic"}
        Which :math:`L`.
    seed : int
        What decides the order, with the ratings, and how bfloat16 is rounded: give each epoch its own.
    head_lr : float, optional
        Learning rate of scale and bias, by default ``lr``. 0 keeps them as they are: a learnt scale makes up for what
        the penalty takes from dot products.

    Returns
    -------
    Tensor
        The mean of :math:`L`, each rating's before its step: float64, no dimension; NaN where there are no ratings.

    Raises
    ------
    ValueError
        If shapes or types do not fit, an option is out of range, a row is negative or not in its table, a rating is
        not finite, or not from 0 to 1 for the logistic loss. Nothing has changed then.

    Notes
    -----
    Users and items are cut into as many groups each, at random and balanced by their ratings. An epoch is a round for
    each diagonal of that grid of blocks; the blocks of a round share neither users nor items, so they run at once and
    without locks (Gemulla et al. 2011). All share the scale and the bias: each block moves its own copy, and after
    a round these move by the mean. The grid depends on the number of ratings alone, so that the result is the same
    for any number of threads.

    Tables of bfloat16 are rounded stochastically after each step: a value goes up or down to a neighbour with the
    chances that make it right on average (Gupta et al. 2015). To the nearest, a step of less than half a unit in the
    last place, which is 1/256 to 1/512 of a value, would be lost, and learning would stop there. What decides is the
    seed with the place of the rating in the epoch's order, so the result is the same for any number of threads here
    too. A value that a step does not move stays as it is.

    On CUDA the order is the same. An error of the values cannot be raised without waiting for the device: a row that is
    not in its table, or a rating that is none, stops it by a device-side assertion.
    """
    head_lr = lr if head_lr is None else head_lr
    _check_options(lr, l2, head_lr, similarity, loss, seed)
    _check_parameters(users, items, user_biases, item_biases, head)
    _check_ratings(user, item, rating, users)
    tables = (users, items, user_biases, item_biases, head)
    with torch.no_grad():
        mean: Tensor = _epoch(
            *tables, user, item, rating, lr, l2, similarity == "cosine", loss == "logistic", seed, head_lr
        )
    torch.autograd.graph.increment_version(tables)
    return mean


def _check_options(lr: float, l2: float, head_lr: float, similarity: str, loss: str, seed: int) -> None:
    for name, value in (("lr", lr), ("l2", l2), ("head_lr", head_lr)):
        if not 0 <= value < math.inf:
            raise ValueError(f"cosine_sgd_epoch_: {name} must be finite and not negative, got {value}")
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"cosine_sgd_epoch_: similarity must be 'cosine' or 'dot', got {similarity!r}")
    if loss not in ("squared", "logistic"):
        raise ValueError(f"cosine_sgd_epoch_: loss must be 'squared' or 'logistic', got {loss!r}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"cosine_sgd_epoch_: seed must be from 0 to 2^63 - 1, got {seed}")


def _check_parameters(
    users: Tensor, items: Tensor, user_biases: Tensor, item_biases: Tensor, head: Tensor
) -> None:
    if users.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"cosine_sgd_epoch_: users must be float32, float64 or bfloat16, got {users.dtype}")
    for name, table in (("users", users), ("items", items)):
        if table.dim() != 2:
            raise ValueError(
                f"cosine_sgd_epoch_: {name} must have two dimensions, got shape {list(table.shape)}"
            )
    arithmetic = reference.arithmetic_type(users.dtype)
    for name, value, shape, dtype in (
        ("users", users, tuple(users.shape), users.dtype),
        ("items", items, (items.size(0), users.size(1)), users.dtype),
        ("user_biases", user_biases, (users.size(0),), arithmetic),
        ("item_biases", item_biases, (items.size(0),), arithmetic),
        ("head", head, (2,), arithmetic),
    ):
        _check_tensor(name, value, shape, dtype, users.device)
        if not value.is_contiguous():
            raise ValueError(f"cosine_sgd_epoch_: {name} must be contiguous, to be changed in place")


def _check_ratings(user: Tensor, item: Tensor, rating: Tensor, users: Tensor) -> None:
    arithmetic = reference.arithmetic_type(users.dtype)
    _check_tensor("rating", rating, (rating.numel(),), arithmetic, users.device)
    for name, rows in (("user", user), ("item", item)):
        integers = rows.dtype in (torch.int32, torch.int64)
        if not integers or rows.shape != rating.shape or rows.device != users.device:
            raise ValueError(
                f"cosine_sgd_epoch_: {name} must be int32 or int64 of shape {list(rating.shape)} on {users.device}, "
                f"got {rows.dtype} of shape {list(rows.shape)} on {rows.device}"
            )


def _check_tensor(
    name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if value.shape != shape or value.dtype != dtype or value.device != device:
        raise ValueError(
            f"cosine_sgd_epoch_: {name} must be {dtype} of shape {list(shape)} on {device}, "
            f"got {value.dtype} of shape {list(value.shape)} on {value.device}"
        )


def _fake_epoch(users: Tensor) -> Tensor:
    return users.new_empty((), dtype=torch.float64)


_epoch = register(
    reference.cosine_sgd_epoch_,
    fake=_fake_epoch,
    mutates=("users", "items", "user_biases", "item_biases", "head"),
)
