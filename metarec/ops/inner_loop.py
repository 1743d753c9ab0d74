"""Gradient steps on a small network for many tasks at once, with exact meta-gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.features import widened
from metarec.ops.library import NATIVE, register

Activation = Literal["relu", "gelu", "tanh"]
Loss = Literal["squared", "logistic", "gaussian"]


@dataclass(frozen=True)
class InnerHead:
    r"""A network that all tasks start from: :math:`z_l = h_l W_l^\top + b_l`, :math:`h_{l+1} = f(z_l)`."""

    layers: Sequence[tuple[Tensor, Tensor]]
    """Weight ``[out, in]`` and bias ``[out]`` of each layer, as in ``torch.nn.Linear``: none, one or two hidden ones
    and the output. The type is float32 or float64, and that of all other tensors; only inputs may be bfloat16 beside
    float32."""
    activation: Activation = "relu"
    """The activation :math:`f` of the hidden layers; ``"gelu"`` is the exact one."""
    loss: Loss = "squared"
    r"""The loss of a rating :math:`y`: ``"squared"`` is :math:`(z - y)^2 / 2`; ``"logistic"`` is
    :math:`\log(1 + e^z) - y z`, for :math:`y` from 0 to 1; ``"gaussian"`` has two outputs, a mean :math:`z_0` and a log
    variance :math:`z_1`, and is :math:`(z_1 + (y - z_0)^2 e^{-z_1}) / 2`."""
    adapt: Literal["all", "last"] = "all"
    """Which layers the steps change. Those they do not change are shared, and have gradients like the others."""


@dataclass(frozen=True)
class InnerSteps:
    """Gradient steps, and how far they go."""

    count: int
    """How many."""
    rates: Tensor | float
    """Rates: a number, ``[layers]`` (of those that adapt), ``[count, 1]`` or ``[count, layers]``."""
    rank_one_rates: Sequence[tuple[Tensor, Tensor]] | None = None
    r"""Per layer that adapts, factors of the rates by output, :math:`u` ``[out]``, and by input, :math:`v` ``[in + 1]``
    with the bias last: the rate of the weight from input :math:`i` to output :math:`o` is multiplied by
    :math:`u_o v_i`."""
    parameter_rates: Sequence[tuple[Tensor, Tensor]] | None = None
    """Per layer that adapts, factors of the rates of its weight and its bias, of the shapes of these."""
    pull: float = 0.0
    r"""Strength :math:`p` of the pull back to the start: the steps descend the loss plus
    :math:`\tfrac p2 \|\phi - \theta\|^2`."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether the loss of a support is the weighted mean or the weighted sum of its ratings' losses."""


class InnerLoopState(NamedTuple):
    r"""Adapted heads of ``T`` tasks, as :func:`inner_loop_state` makes them.

    The first layer that adapts has the weight :math:`W_0 - C_t^\top R_t`, of the task's rows of ``coefficients`` and
    ``rows``; what does not adapt is the head's. With ``parameter_rates`` there are neither, and ``parameters`` has all.
    """

    rows: Tensor
    """What the support feeds to that layer, ``[n, in]``, or empty."""
    coefficients: Tensor
    """What each of them takes from its weight, ``[n, out]``, or empty."""
    parameters: Tensor
    """The other adapted parameters of each task, ``[T, p]``."""


def inner_loop(
    head: InnerHead,
    steps: InnerSteps,
    support: Tensor,
    targets: Tensor,
    support_offsets: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    *,
    weights: Tensor | None = None,
    order: Literal[0, 1, 2] = 2,
) -> Tensor:
    r"""Adapt the head to each task's support by gradient steps, and predict its queries.

    Task :math:`t` owns the support rows ``support_offsets[t] <= j < support_offsets[t + 1]`` and likewise its queries.
    From the shared parameters :math:`\theta`, its own ones take the steps :math:`k = 1, \dots, K`

    .. math::
        \phi \leftarrow \phi - \alpha_k \odot \nabla_\phi \Bigl( \frac{\sum_j w_j \ell_j(\phi)}{\sum_j w_j}
        + \frac p2 \|\phi - \theta\|^2 \Bigr),

    (MAML: Finn et al. 2017; learnt rates: Li et al. 2017; the last layer only: Raghu et al. 2020; the pull: a Gaussian
    prior, Grant et al. 2018). A task without support, or of weights zero, predicts by :math:`\theta`.

    Parameters
    ----------
    head : InnerHead
        The network, its loss and which of its layers adapt.
    steps : InnerSteps
        The steps and their rates.
    support : Tensor
        Inputs of all support ratings, ``[n, d]``; of the type of the head, or bfloat16 beside float32.
    targets : Tensor
        The ratings :math:`y_j`, ``[n]``.
    support_offsets : Tensor
        First support row of each task and, last, ``n``: int64, ``[T + 1]``, ascending from 0.
    query : Tensor
        Inputs of what is to be predicted, ``[m, d]``; likewise.
    query_offsets : Tensor
        First query of each task and, last, ``m``: int64, ``[T + 1]``, ascending from 0.
    weights : Tensor, optional
        Weight :math:`w_j \ge 0` of each support rating, ``[n]``; 1 by default.
    order : {0, 1, 2}
        What gradient the predictions carry: 2 the exact one, through the steps; 1 with the gradients
        :math:`\nabla_\phi` in the steps taken for constants; 0 none.

    Returns
    -------
    Tensor
        The outputs for each query: ``[m]``, or ``[m, 2]`` (mean and log variance) where the loss is ``"gaussian"``.

    Raises
    ------
    ValueError
        If shapes, types or offsets do not fit.

    Notes
    -----
    Of order 2, gradients reach all floating arguments, once: a second derivative raises. Of order 1, they reach the
    parameters, the rates and the queries.

    Of bfloat16 inputs a copy in float32 is made, which is exact; all else is float32, but for their gradient, which is
    rounded to bfloat16.

    The first layer's weight is not copied per task: its change is kept as coefficients of the support's rows, and what
    it does is computed from their inner products, wherever that is less work (not with ``parameter_rates``, nor with
    ``rank_one_rates`` and a pull, nor for supports that are larger than the layer is wide). The forward pass
    keeps the steps for the backward pass as long as they fill at most 16 Mi numbers; beyond that they are taken again,
    and no memory grows with the number of tasks but the arguments' and results' own. Each thread holds one task's
    steps, :math:`O(\min(S^2, DH) + SHK + H^2 K)` for support :math:`S`, inputs :math:`D` and hidden width :math:`H`.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"inner_loop: order must be 0, 1 or 2, got {order}")
    op = "inner_loop"
    _check_head(op, head)
    support = _checked_rows(op, head, "support", support, support_offsets)
    query = _checked_rows(op, head, "query", query, query_offsets, tasks=support_offsets.size(0) - 1)
    arguments = _support(op, head, steps, support, targets, support_offsets, weights)
    asked = _frozen(head, query)
    network, rates = _network(head), _rates(head, steps)
    if order == 0:
        with torch.no_grad():
            return _outputs(
                head, _loop(*arguments, asked, query_offsets, *network, *rates, 1, _NOTHING, 0)[0]
            )
    keep = _NOTHING
    if torch.is_grad_enabled() and _any_gradient(*arguments[:3], asked, network[0], *rates[:4]):
        keep = _STEPS if order == 2 or _any_gradient(*rates[:4]) else _ADAPTED
    room = _room(keep, arguments[0], asked, query_offsets, network[1], head.activation, rates)
    if room == 0 or room > _MOST_KEPT:
        keep, room = _NOTHING, 0
    inputs = (*arguments, asked, query_offsets, *network, *rates, order, keep, room)
    return _outputs(head, _DifferentiableLoop.apply(*inputs))  # type: ignore[no-untyped-call]


def inner_loop_state(
    head: InnerHead,
    steps: InnerSteps,
    support: Tensor,
    targets: Tensor,
    support_offsets: Tensor,
    *,
    weights: Tensor | None = None,
) -> InnerLoopState:
    """Adapt the head to each task's support as :func:`inner_loop` does, and keep what serving needs of it.

    Parameters
    ----------
    head, steps, support, targets, support_offsets, weights
        As for :func:`inner_loop`.

    Returns
    -------
    InnerLoopState
        What :func:`inner_loop_predict` predicts by. It carries no gradient.

    Raises
    ------
    ValueError
        If shapes, types or offsets do not fit.
    """
    op = "inner_loop_state"
    _check_head(op, head)
    support = _checked_rows(op, head, "support", support, support_offsets)
    with torch.no_grad():
        arguments = _support(op, head, steps, support, targets, support_offsets, weights)
        return InnerLoopState(*_state(*arguments, *_network(head), *_rates(head, steps)))


def inner_loop_predict(
    head: InnerHead, state: InnerLoopState, support_offsets: Tensor, query: Tensor, query_offsets: Tensor
) -> Tensor:
    """Predict queries by heads that were adapted before.

    Parameters
    ----------
    head : InnerHead
        The network that the tasks started from.
    state : InnerLoopState
        What :func:`inner_loop_state` gave for it.
    support_offsets : Tensor
        The offsets of the supports then, int64, ``[T + 1]``.
    query, query_offsets : Tensor
        As for :func:`inner_loop`.

    Returns
    -------
    Tensor
        The predictions of :func:`inner_loop` for these queries. They carry no gradient.

    Raises
    ------
    ValueError
        If shapes, types or offsets do not fit.
    """
    op = "inner_loop_predict"
    _check_head(op, head)
    tasks = state.parameters.size(0)
    query = _checked_rows(op, head, "query", query, query_offsets, tasks=tasks)
    parameters, widths, activation, _ = _network(head)
    full = state.parameters.size(1) == parameters.size(0)
    kept = 0 if full else state.rows.size(0)
    _check_shape(op, "state.rows", state.rows, (kept, widths[0]), query)
    _check_shape(op, "state.coefficients", state.coefficients, (kept, widths[1]), query)
    rest = parameters.size(0) - (0 if full else widths[0] * widths[1])
    _check_shape(op, "state.parameters", state.parameters, (tasks, rest), query)
    _check_offsets(op, "support_offsets", support_offsets, tasks)
    with torch.no_grad():
        return _outputs(
            head,
            _predict(*state, support_offsets, _frozen(head, query), query_offsets, parameters, widths, activation),
        )  # fmt: skip


def inner_loop_effects(
    head: InnerHead,
    steps: InnerSteps,
    support: Tensor,
    targets: Tensor,
    support_offsets: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Give the effect of each support rating on each prediction of its task: with it, less without it.

    These leave-one-out effects are exact, each by steps of its own on the rest of the support. They do not add up to
    the whole change of a prediction. On CUDA the call waits for the device, to learn how many effects there are.

    Parameters
    ----------
    head, steps, support, targets, support_offsets, query, query_offsets, weights
        As for :func:`inner_loop`.

    Returns
    -------
    Tensor
        Task by task, the effects ``[support, query]`` in one row, ``[p]``; ``[p, 2]`` where the loss is ``"gaussian"``.

    Raises
    ------
    ValueError
        If shapes, types or offsets do not fit.
    """
    op = "inner_loop_effects"
    _check_head(op, head)
    support = _checked_rows(op, head, "support", support, support_offsets)
    query = _checked_rows(op, head, "query", query, query_offsets, tasks=support_offsets.size(0) - 1)
    with torch.no_grad():
        arguments = _support(op, head, steps, support, targets, support_offsets, weights)
        pairs = int((support_offsets.diff() * query_offsets.diff()).sum())
        asked = _frozen(head, query)
        return _outputs(
            head,
            _effects(*arguments, asked, query_offsets, *_network(head), *_rates(head, steps), pairs),
        )


def _adapted_layers(head: InnerHead) -> Sequence[tuple[Tensor, Tensor]]:
    return head.layers if head.adapt == "all" else head.layers[-1:]


def _frozen(head: InnerHead, inputs: Tensor) -> Tensor:
    """Apply the layers that do not adapt."""
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}
    for weight, bias in head.layers[: len(head.layers) - len(_adapted_layers(head))]:
        inputs = functions[head.activation](torch.nn.functional.linear(inputs, weight, bias))
    return inputs


def _flat(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([part.flatten() for pair in pairs for part in pair])


def _network(head: InnerHead) -> tuple[Tensor, list[int], str, str]:
    layers = _adapted_layers(head)
    widths = [layers[0][0].size(1), *(weight.size(0) for weight, _ in layers)]
    return _flat(layers), widths, head.activation, head.loss


def _rates(
    head: InnerHead, steps: InnerSteps
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float]:
    layers = _adapted_layers(head)
    like = layers[0][0]
    # A number is filled in by the device: a copy of it would wait for that.
    given = steps.rates.to(like) if isinstance(steps.rates, Tensor) else like.new_full((), steps.rates)
    rates = given.expand(steps.count, len(layers))
    if steps.parameter_rates is not None:
        return rates, None, None, _flat(steps.parameter_rates), steps.pull
    if steps.rank_one_rates is None:
        return rates, None, None, None, steps.pull
    full = [(u[:, None] * v[:-1], u * v[-1]) for u, v in steps.rank_one_rates]
    if steps.pull != 0:
        return rates, None, None, _flat(full), steps.pull
    outputs, inputs = steps.rank_one_rates[0]
    return rates, outputs, inputs, _flat(full[1:]) if full[1:] else like.new_empty(0), steps.pull


def _support(
    op: str,
    head: InnerHead,
    steps: InnerSteps,
    support: Tensor,
    targets: Tensor,
    support_offsets: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    _check_settings(op, head, steps)
    _check_shape(op, "targets", targets, (support.size(0),), support)
    if weights is None:
        weights = torch.ones_like(targets)
    _check_shape(op, "weights", weights, (support.size(0),), support)
    return _frozen(head, support), targets, weights, support_offsets, steps.reduction == "mean"


# What the forward pass keeps for the backward pass: nothing, the adapted heads, or the steps. It takes the steps again
# where they would fill more values than this.
_NOTHING, _ADAPTED, _STEPS = range(3)
_MOST_KEPT = 1 << 24


def _any_gradient(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _room(
    keep: int,
    support: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    widths: list[int],
    activation: str,
    rates: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float],
) -> int:
    """Give how much that is at most; kernels pad each row to whole vectors."""
    if keep == _NOTHING or not NATIVE or support.device.type != "cpu":
        return 0
    padded = [-(-width // 16) * 16 for width in widths]
    outputs, hidden = padded[1:], sum(padded[1:-1])
    curved = activation != "relu"
    query_row = sum(outputs) + (2 * hidden if curved else 0)
    steps, output_scales, scales = rates[0].size(0), rates[1], rates[3]
    if keep == _STEPS:
        gradients = sum(outputs[:-2]) * (2 if curved else 1)
        support_row = steps * (query_row + gradients)
        return support.size(0) * support_row + query.size(0) * query_row
    compact = scales is None or output_scales is not None
    blocks = [
        height * width + above for height, width, above in zip(widths[1:], padded, outputs, strict=False)
    ]
    task = sum(blocks[1:] if compact else blocks)
    support_row = outputs[0] if compact else 0
    tasks = query_offsets.size(0) - 1
    return support.size(0) * support_row + tasks * task + query.size(0) * query_row


def _outputs(head: InnerHead, outputs: Tensor) -> Tensor:
    return outputs if head.loss == "gaussian" else outputs.flatten()


def _check_offsets(op: str, name: str, offsets: Tensor, tasks: int | None) -> None:
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.size(0) < 1:
        raise ValueError(
            f"{op}: {name} must be int64 of shape [T + 1], got {offsets.dtype} {list(offsets.shape)}"
        )
    if tasks is not None and offsets.size(0) != tasks + 1:
        raise ValueError(f"{op}: {name} must have shape [{tasks + 1}], got {list(offsets.shape)}")


def _check_head(op: str, head: InnerHead) -> None:
    if not 1 <= len(head.layers) <= 3:
        raise ValueError(f"{op}: head must have one to three layers, got {len(head.layers)}")
    first = head.layers[0][0]
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: head must be float32 or float64, got {first.dtype}")
    width = first.size(-1) if first.dim() else 0
    for layer, (weight, bias) in enumerate(head.layers):
        outputs = weight.size(0) if weight.dim() == 2 else 0
        if width < 1:
            raise ValueError(f"{op}: layer {layer} must have at least one input, got none")
        _check_shape(op, f"weight of layer {layer}", weight, (outputs, width), first)
        _check_shape(op, f"bias of layer {layer}", bias, (outputs,), first)
        width = outputs
    wanted = 2 if head.loss == "gaussian" else 1
    if width != wanted:
        raise ValueError(f"{op}: the {head.loss} loss wants {wanted} outputs, got {width}")


def _checked_rows(
    op: str, head: InnerHead, name: str, rows: Tensor, offsets: Tensor, tasks: int | None = None
) -> Tensor:
    """Give the rows in the type of the head."""
    first = head.layers[0][0]
    rows = widened(rows, first)
    width = first.size(1)
    if rows.dim() != 2 or rows.size(1) != width or rows.dtype != first.dtype or rows.device != first.device:
        raise ValueError(
            f"{op}: {name} must be {first.dtype} of shape [n, {width}] on {first.device}, "
            f"got {rows.dtype} of shape {list(rows.shape)} on {rows.device}"
        )
    _check_offsets(op, f"{name}_offsets", offsets, tasks)
    return rows


def _check_settings(op: str, head: InnerHead, steps: InnerSteps) -> None:
    for name, value, allowed in (
        ("activation", head.activation, ("relu", "gelu", "tanh")),
        ("loss", head.loss, ("squared", "logistic", "gaussian")),
        ("adapt", head.adapt, ("all", "last")),
        ("reduction", steps.reduction, ("mean", "sum")),
    ):
        if value not in allowed:
            raise ValueError(f"{op}: {name} must be one of {', '.join(allowed)}, got {value!r}")
    if steps.count < 0:
        raise ValueError(f"{op}: the count of steps must not be negative, got {steps.count}")
    layers = _adapted_layers(head)
    shape = tuple(steps.rates.shape) if isinstance(steps.rates, Tensor) else ()
    wanted = (steps.count, len(layers))
    if len(shape) > 2 or any(
        a not in (1, b) for a, b in zip(reversed(shape), reversed(wanted), strict=False)
    ):
        raise ValueError(f"{op}: rates must be a number or go with shape {list(wanted)}, got {list(shape)}")
    if steps.rank_one_rates is not None and steps.parameter_rates is not None:
        raise ValueError(f"{op}: give rank_one_rates or parameter_rates, not both")
    for name, given, shapes in (
        ("rank_one_rates", steps.rank_one_rates, [((w.size(0),), (w.size(1) + 1,)) for w, _ in layers]),
        ("parameter_rates", steps.parameter_rates, [(tuple(w.shape), tuple(b.shape)) for w, b in layers]),
    ):
        if given is None:
            continue
        if len(given) != len(layers):
            raise ValueError(f"{op}: {name} must be given for {len(layers)} layers, got {len(given)}")
        for layer, (pair, expected) in enumerate(zip(given, shapes, strict=True)):
            for part, shape in zip(pair, expected, strict=True):
                _check_shape(op, f"{name} of layer {layer}", part, shape, layers[0][0])


def _check_shape(op: str, name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{op}: {name} must be {like.dtype} on {like.device}, got {value.dtype} on {value.device}"
        )
    if tuple(value.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(value.shape)}")


# Where the op's arguments have those that may have a gradient.
_DIFFERENTIABLE = tuple(
    list(inspect.signature(reference.inner_loop).parameters).index(name)
    for name in (
        "support", "targets", "weights", "query", "parameters", "rates", "output_scales", "input_scales", "scales",
    )
)  # fmt: skip


def _fake_loop(query: Tensor, widths: list[int], room: int) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.size(0), widths[-1]), query.new_empty(room)


def _fake_backward(
    support: Tensor,
    targets: Tensor,
    weights: Tensor,
    query: Tensor,
    parameters: Tensor,
    rates: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
    wanted: list[bool],
) -> list[Tensor]:
    like = (support, targets, weights, query, parameters, rates, output_scales, input_scales, scales)
    return [
        query.new_empty(tensor.shape if needed and tensor is not None else (0,))
        for tensor, needed in zip(like, wanted, strict=True)
    ]


def _fake_state(
    support: Tensor,
    support_offsets: Tensor,
    parameters: Tensor,
    widths: list[int],
    output_scales: Tensor | None,
    scales: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    full = scales is not None and output_scales is None
    rows = 0 if full else support.size(0)
    rest = parameters.size(0) - (0 if full else widths[0] * widths[1])
    return (
        support.new_empty(rows, widths[0]),
        support.new_empty(rows, widths[1]),
        support.new_empty(support_offsets.size(0) - 1, rest),
    )


def _fake_predict(query: Tensor, widths: list[int]) -> Tensor:
    return query.new_empty(query.size(0), widths[-1])


def _fake_effects(query: Tensor, widths: list[int], pairs: int) -> Tensor:
    return query.new_empty(pairs, widths[-1])


class _DifferentiableLoop(torch.autograd.Function):
    """The op with its gradient: as a registered part of the op, it would take as long as a small task's steps."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        predictions: Tensor
        predictions, trace = _loop(*inputs)
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs), trace)
        ctx.settings = [None if isinstance(value, Tensor) else value for value in inputs]
        return predictions

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, trace = ctx.saved_tensors
        inputs = (
            setting if tensor is None else tensor
            for tensor, setting in zip(tensors[:-1], ctx.settings, strict=False)
        )
        needed = ctx.needs_input_grad
        wanted = [needed[index] for index in _DIFFERENTIABLE]
        gradient = _Gradient.apply if torch.is_grad_enabled() else _backward
        gradients: list[Tensor | None] = [None] * len(tensors)
        for index, found in zip(_DIFFERENTIABLE, gradient(grad, *inputs, trace, wanted), strict=True):
            gradients[index] = found if needed[index] else None
        return tuple(gradients)


class _Gradient(torch.autograd.Function):
    """The gradient, where it is to be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(_backward(*inputs))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError("inner_loop can be differentiated once only")


_loop = register(reference.inner_loop, fake=_fake_loop)
_backward = register(reference.inner_loop_backward, fake=_fake_backward)
_state = register(reference.inner_loop_state, fake=_fake_state)
_predict = register(reference.inner_loop_predict, fake=_fake_predict)
_effects = register(reference.inner_loop_effects, fake=_fake_effects)
