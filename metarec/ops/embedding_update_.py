"""Steps of stochastic optimisation on the rows of a table that have gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.library import register

Rule = Literal["sgd", "adagrad", "adam"]

_STATE: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("sum",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
}
"""What each rule keeps, by the names that torch's optimizers use."""

_TABLES = (torch.float32, torch.float64, torch.bfloat16)

_OPTIONS = ("rule", "lr", "l2", "weight_decay", "betas", "eps")

_PER_ROW = ("sum", "step")
"""Of these there is one number per row, of the others one per value."""


def embedding_state(table: Tensor, rule: Rule) -> dict[str, Tensor]:
    """Give the state that a rule keeps for a table, before the first step.

    Parameters
    ----------
    table : Tensor
        The table, ``[N, d]``.
    rule : {"sgd", "adagrad", "adam"}
        The rule, see :func:`embedding_update_`.

    Returns
    -------
    dict of str to Tensor
        Nothing for SGD; ``sum [N]`` for Adagrad; ``exp_avg`` and ``exp_avg_sq``, ``[N, d]``, and ``step [N]``
        (int32) for Adam. All zero, and of the type of the table, of a bfloat16 one float32.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    _check_rule(rule)
    return {
        name: torch.zeros(
            table.size(0) if name in _PER_ROW else table.shape,
            dtype=_state_type(name, table),
            device=table.device,
        )
        for name in _STATE[rule]
    }


def embedding_update_(
    table: Tensor,
    rows: Tensor,
    gradients: Tensor,
    *,
    rule: Rule,
    state: dict[str, Tensor],
    lr: float,
    l2: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    seed: int | None = None,
) -> None:
    r"""Make one step on each row of a table that has gradients, in place; other rows and their state stay as they are.

    The gradients of a row are summed first, so that it takes one step however often it is named. With that sum
    :math:`s`, the row :math:`\theta`, the gradient :math:`g = s + \ell \theta` for ``l2`` :math:`\ell`, and the
    decoupled ``weight_decay`` :math:`w`,

    .. math:: \theta \leftarrow (1 - \eta w) \theta - \eta \, \Delta(g), \qquad \Delta(g) =
        \begin{cases}
        g & \text{SGD}\\
        g / (\sqrt{G} + \epsilon), \quad G \leftarrow G + \|g\|^2 / d & \text{row-wise Adagrad}\\
        \frac{m}{1 - \beta_1^t} / \Bigl(\sqrt{\frac{v}{1 - \beta_2^t}} + \epsilon\Bigr), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 & \text{lazy Adam}
        \end{cases}

    where :math:`G` is one number per row and :math:`t` counts the steps of the *row*. (``torch.optim.SparseAdam``
    counts those of the table, which corrects a rare row's first step as if it had had many.)

    A bfloat16 table takes half the bytes: its gradients are bfloat16 too, which is what autograd gives, its state is
    float32, and so is all arithmetic, the sums of gradients included. Only the new rows are rounded. Without a
    ``seed`` it is to the nearest, and a step of less than half a unit in the last place, which is 1/512 to 1/256 of
    the value, is lost, however many follow it. With one it is stochastically, up or down with the chances that make
    it right on average, and steps add up whatever their size.

    Parameters
    ----------
    table : Tensor
        The table, ``[N, d]``, float32, float64 or bfloat16, contiguous; changed in place.
    rows : Tensor
        The row of each gradient, ``[n]``, int32 or int64; in any order, and any may repeat.
    gradients : Tensor
        The gradients, ``[n, d]``, of the type of the table.
    rule : {"sgd", "adagrad", "adam"}
        The rule.
    state : dict of str to Tensor
        Its state, as :func:`embedding_state` makes it; changed in place.
    lr : float
        The learning rate :math:`\eta`.
    l2 : float
        The weight of the penalty :math:`\tfrac{\ell}{2} \|\theta\|^2`, of the rows that have gradients.
    weight_decay : float
        The decoupled decay per step and learning rate, of the same rows.
    betas : tuple of float
        The decay of the two means of Adam.
    eps : float
        What keeps the denominator of Adagrad and Adam from zero.
    seed : int or None
        Of the stochastic rounding of a bfloat16 table: what a value is rounded by follows from the seed, its row and
        its column, so give each step a seed of its own. None rounds to the nearest value, the even one of two.

    Raises
    ------
    ValueError
        If shapes, types or state do not fit, an option is out of range, or a row is negative or not in the table.
        Nothing has changed then.

    Notes
    -----
    The result is the same for any number of threads. Row-wise Adagrad is that of FBGEMM; Adagrad: Duchi, Hazan and
    Singer (2011); Adam: Kingma and Ba (2015); decoupled decay: Loshchilov and Hutter (2019).
    """
    _check_options(rule=rule, lr=lr, l2=l2, weight_decay=weight_decay, betas=betas, eps=eps)
    if table.dtype not in _TABLES or table.dim() != 2 or not table.is_contiguous():
        raise ValueError(
            "embedding_update_: table must be float32, float64 or bfloat16 of two dimensions and contiguous, "
            f"got {table.dtype} of shape {list(table.shape)} and strides {list(table.stride())}"
        )
    if seed is not None and (table.dtype != torch.bfloat16 or not 0 <= seed < 1 << 63):
        raise ValueError(
            "embedding_update_: a seed, from 0 to 2^63 - 1, is for the rounding of a bfloat16 table, "
            f"got {seed} and a table of {table.dtype}"
        )
    if rows.dtype not in (torch.int32, torch.int64) or rows.dim() != 1 or rows.device != table.device:
        raise ValueError(
            f"embedding_update_: rows must be int32 or int64 of one dimension on {table.device}, "
            f"got {rows.dtype} of shape {list(rows.shape)} on {rows.device}"
        )
    _check_like("gradients", gradients, (rows.size(0), table.size(1)), table.dtype, table)
    if state.keys() != set(_STATE[rule]):
        raise ValueError(
            f"embedding_update_: the state of {rule!r} holds {list(_STATE[rule])}, got {list(state)}"
        )
    kept = [state[name] for name in _STATE[rule]]
    for name, value in zip(_STATE[rule], kept, strict=True):
        shape = (table.size(0),) if name in _PER_ROW else tuple(table.shape)
        _check_like(f"state {name!r}", value, shape, _state_type(name, table), table)
        if not value.is_contiguous():
            raise ValueError(f"embedding_update_: state {name!r} must be contiguous, to be changed in place")
    with torch.no_grad():
        _update(table, kept, rows, gradients, rule, lr, l2, weight_decay, *betas, eps, seed)
    torch.autograd.graph.increment_version([table, *kept])


class RowOptimizer(torch.optim.Optimizer):
    """Optimizer of embedding tables whose gradients are sparse: a face of :func:`embedding_update_`.

    It takes the place of ``torch.optim.SparseAdam``, and of ``Adagrad`` and ``SGD`` on sparse gradients. These come
    from ``torch.nn.Embedding(..., sparse=True)`` and from :func:`cosine_scores` with ``sparse_grad=True``, and need
    not be coalesced.

    Parameters
    ----------
    params : iterable
        The tables, or groups of them, each ``[N, d]``, float32, float64 or bfloat16, contiguous.
    lr : float
        The learning rate.
    rule : {"sgd", "adagrad", "adam"}
        The rule: SGD, row-wise Adagrad, or lazy Adam with a bias correction per row.
    l2, weight_decay, betas, eps
        As :func:`embedding_update_` takes them.
    seed : int or None
        Of the stochastic rounding of bfloat16 tables, for the first step: with each step of a table it grows by one,
        and it is saved with the state. None rounds to the nearest.

    Raises
    ------
    ValueError
        If an option is out of range, or, at a step, a gradient is dense or a table does not fit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rule: Rule = "adam",
        l2: float = 0.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int | None = None,
    ) -> None:
        defaults = {
            "rule": rule,
            "lr": lr,
            "l2": l2,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "seed": seed,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check_options(**{name: group[name] for name in _OPTIONS})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step on the rows that have gradients.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again and gives it back.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = {name: group[name] for name in _OPTIONS}
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, options, group["seed"])
                    group["seed"] = None if group["seed"] is None else group["seed"] + 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave.

        Parameters
        ----------
        state_dict : dict
            That state.
        """
        super().load_state_dict(state_dict)
        # Torch has made all of it of the type of the table, which the state of a bfloat16 one is not.
        saved, tables = (
            [number for group in groups for number in group["params"]]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        for number, table in zip(saved, tables, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[table][name] = value.to(table.device, _state_type(name, table), copy=True)

    def _update(self, table: Tensor, gradient: Tensor, options: dict[str, Any], seed: int | None) -> None:
        if not gradient.is_sparse or gradient.sparse_dim() != 1:
            raise ValueError(
                f"RowOptimizer: the gradient of the table of shape {list(table.shape)} must be sparse in its rows: "
                "use torch.nn.Embedding(sparse=True) or cosine_scores(sparse_grad=True)"
            )
        state = self.state[table]
        if not state:
            state.update(embedding_state(table, options["rule"]))
        embedding_update_(
            table, gradient._indices()[0], gradient._values(), state=state, seed=seed, **options
        )


def _state_type(name: str, table: Tensor) -> torch.dtype:
    return torch.int32 if name == "step" else reference.arithmetic_type(table.dtype)


def _check_rule(rule: str) -> None:
    if rule not in _STATE:
        raise ValueError(f"embedding_update_: rule must be one of {list(_STATE)}, got {rule!r}")


def _check_options(
    *, rule: str, lr: float, l2: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> None:
    _check_rule(rule)
    for name, value in (("lr", lr), ("l2", l2), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"embedding_update_: {name} must be finite and not negative, got {value}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"embedding_update_: betas must be from 0 to below 1, got {betas}")
    if not 0 < eps < math.inf:
        raise ValueError(f"embedding_update_: eps must be finite and positive, got {eps}")


def _check_like(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, table: Tensor) -> None:
    if value.shape != shape or value.dtype != dtype or value.device != table.device:
        raise ValueError(
            f"embedding_update_: {name} must be {dtype} of shape {list(shape)} on {table.device}, "
            f"got {value.dtype} of shape {list(value.shape)} on {value.device}"
        )


def _fake_update() -> None:
    return None


_update = register(reference.embedding_update_, fake=_fake_update, mutates=("table", "state"))
