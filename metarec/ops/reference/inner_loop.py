"""`inner_loop`, its gradient, `inner_loop_state`, `_predict` and `_effects`, one task after another."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from metarec.ops.reference.indices import check_offsets, segments


class _Step(NamedTuple):
    """One step of a task: the layers before it, and per layer its inputs and sums, and the gradients in these."""

    layers: list[Tensor]
    inputs: list[Tensor]
    sums: list[Tensor]
    pushed: list[Tensor]
    """Gradients in the outputs of the hidden layers."""
    gradients: list[Tensor]
    """Gradients in the sums."""


def inner_loop(
    support: Tensor,
    targets: Tensor,
    weights: Tensor,
    support_offsets: Tensor,
    mean: bool,
    query: Tensor,
    query_offsets: Tensor,
    parameters: Tensor,
    widths: list[int],
    activation: str,
    loss: str,
    rates: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
    pull: float,
    order: int,
    keep: int,
    room: int,
) -> tuple[Tensor, Tensor]:
    """Give the predictions, and a trace of nothing: this keeps nothing for the backward pass."""
    check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    predictions = [query.new_empty(0, widths[-1])]
    for own, asked in zip(segments(support_offsets), segments(query_offsets), strict=True):
        shares = _shares(weights[own], mean)
        _, adapted = _steps(start, support[own], targets[own], shares, activation, loss, rates, factors, pull)
        predictions.append(_sums(adapted, query[asked], activation)[1][-1])
    return torch.cat(predictions), query.new_empty(room)


def inner_loop_backward(
    grad: Tensor,
    support: Tensor,
    targets: Tensor,
    weights: Tensor,
    support_offsets: Tensor,
    mean: bool,
    query: Tensor,
    query_offsets: Tensor,
    parameters: Tensor,
    widths: list[int],
    activation: str,
    loss: str,
    rates: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
    pull: float,
    order: int,
    keep: int,
    trace: Tensor,
    wanted: list[bool],
) -> list[Tensor]:
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    start_bar, factors_bar = ([torch.zeros_like(layer) for layer in start] for _ in range(2))
    support_bar, targets_bar, shares_bar = (torch.zeros_like(x) for x in (support, targets, weights))
    query_bar, weights_bar, rates_bar = (torch.zeros_like(x) for x in (query, weights, rates))
    for own, asked in zip(segments(support_offsets), segments(query_offsets), strict=True):
        shares = _shares(weights[own], mean)
        steps, adapted = _steps(
            start, support[own], targets[own], shares, activation, loss, rates, factors, pull
        )
        inputs, sums = _sums(adapted, query[asked], activation)
        bar, layers_bar = grad[asked], [torch.zeros_like(layer) for layer in start]
        for layer in reversed(range(len(start))):
            layers_bar[layer] += bar.mT @ inputs[layer]
            bar = bar @ adapted[layer][:, :-1]
            if layer:
                bar = bar * _derivatives(sums[layer - 1], activation)[0]
        query_bar[asked] = bar
        for k, step in reversed(list(enumerate(steps))):
            gradients_bar, inputs_bar = [], []
            for layer, layer_bar in enumerate(layers_bar):
                total = _total_gradient(step, layer, start, pull)
                rate_bar = -layer_bar * total
                rates_bar[k, layer] += (rate_bar * factors[layer]).sum()
                factors_bar[layer] += rates[k, layer] * rate_bar
                total_bar = -rates[k, layer] * factors[layer] * layer_bar
                gradients_bar.append(step.inputs[layer] @ total_bar.mT)
                inputs_bar.append(step.gradients[layer] @ total_bar[:, :-1])
                if order == 2:
                    start_bar[layer] -= pull * total_bar
                    layer_bar += pull * total_bar
            if order == 1:
                continue
            sums_bar = []
            for layer in range(len(start) - 1):
                slope, curve = _derivatives(step.sums[layer], activation)
                sums_bar.append(gradients_bar[layer] * step.pushed[layer] * curve)
                pushed_bar = gradients_bar[layer] * slope
                gradients_bar[layer + 1] += pushed_bar @ step.layers[layer + 1][:, :-1].mT
                layers_bar[layer + 1][:, :-1] += step.gradients[layer + 1].mT @ pushed_bar
            gradient, curvature, by_target = _loss_terms(step.sums[-1], targets[own], loss)
            sums_bar.append(shares[:, None] * (gradients_bar[-1][:, None] @ curvature)[:, 0])
            shares_bar[own] += (gradients_bar[-1] * gradient).sum(1)
            targets_bar[own] += shares * (gradients_bar[-1] * by_target).sum(1)
            for layer in reversed(range(len(start))):
                layers_bar[layer] += sums_bar[layer].mT @ step.inputs[layer]
                below = inputs_bar[layer] + sums_bar[layer] @ step.layers[layer][:, :-1]
                if layer:
                    sums_bar[layer - 1] += below * _derivatives(step.sums[layer - 1], activation)[0]
                else:
                    support_bar[own] += below
        for total_bar, layer_bar in zip(start_bar, layers_bar, strict=True):
            total_bar += layer_bar
        bar = shares_bar[own] - (shares_bar[own] * shares).sum() if mean else shares_bar[own]
        weights_bar[own] = bar / _divisor(weights[own], mean)
    outputs_bar = inputs_scales_bar = None
    if output_scales is not None and input_scales is not None:
        outputs_bar = factors_bar[0] @ input_scales
        inputs_scales_bar = factors_bar.pop(0).mT @ output_scales
    found = (
        support_bar, targets_bar, weights_bar, query_bar, _flat(start_bar), rates_bar, outputs_bar, inputs_scales_bar,
        None if scales is None else _flat([scales.new_empty(0, 1), *factors_bar]),
    )  # fmt: skip
    return [
        query.new_empty(0) if bar is None or not needed else bar
        for bar, needed in zip(found, wanted, strict=True)
    ]


def inner_loop_state(
    support: Tensor,
    targets: Tensor,
    weights: Tensor,
    support_offsets: Tensor,
    mean: bool,
    parameters: Tensor,
    widths: list[int],
    activation: str,
    loss: str,
    rates: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
    pull: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    sum_rates = rates[:, :1] if output_scales is None else rates[:, :1] * output_scales
    adapted = [parameters.new_empty(0, parameters.size(0))]
    coefficients = [support.new_empty(0, widths[1])]
    for own in segments(support_offsets):
        shares = _shares(weights[own], mean)
        steps, layers = _steps(
            start, support[own], targets[own], shares, activation, loss, rates, factors, pull
        )
        taken = support.new_zeros(own.stop - own.start, widths[1])
        for step, rate in zip(steps, sum_rates, strict=True):
            taken = taken + rate * (step.gradients[0] - pull * taken)
        adapted.append(_flat(layers)[None])
        coefficients.append(taken)
    full = torch.cat(adapted)
    if scales is not None and output_scales is None:
        return support.new_empty(0, widths[0]), support.new_empty(0, widths[1]), full
    rows = support.clone() if input_scales is None else support * input_scales[:-1]
    return rows, torch.cat(coefficients), full[:, widths[0] * widths[1] :]


def inner_loop_predict(
    rows: Tensor,
    coefficients: Tensor,
    adapted: Tensor,
    support_offsets: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    parameters: Tensor,
    widths: list[int],
    activation: str,
) -> Tensor:
    check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    size = widths[0] * widths[1]
    compact = adapted.size(1) != parameters.size(0)
    predictions = [query.new_empty(0, widths[-1])]
    for own, asked, task in zip(
        segments(support_offsets), segments(query_offsets), adapted.unbind(), strict=True
    ):
        if compact:
            task = torch.cat([parameters[:size] - (coefficients[own].mT @ rows[own]).reshape(-1), task])
        predictions.append(_sums(_layers(task, widths), query[asked], activation)[1][-1])
    return torch.cat(predictions)


def inner_loop_effects(
    support: Tensor,
    targets: Tensor,
    weights: Tensor,
    support_offsets: Tensor,
    mean: bool,
    query: Tensor,
    query_offsets: Tensor,
    parameters: Tensor,
    widths: list[int],
    activation: str,
    loss: str,
    rates: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
    pull: float,
    pairs: int,
) -> Tensor:
    check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    effects = [query.new_empty(0, widths[-1])]
    for own, asked in zip(segments(support_offsets), segments(query_offsets), strict=True):
        left_out = torch.eye(own.stop - own.start, dtype=weights.dtype, device=weights.device)
        predictions = []
        for kept in (torch.ones_like(weights[own]), *(1 - left_out)):
            shares = _shares(kept * weights[own], mean)
            _, adapted = _steps(
                start, support[own], targets[own], shares, activation, loss, rates, factors, pull
            )
            predictions.append(_sums(adapted, query[asked], activation)[1][-1])
        effects += [predictions[0] - without for without in predictions[1:]]
    return torch.cat(effects)


def _steps(
    start: list[Tensor],
    inputs: Tensor,
    targets: Tensor,
    shares: Tensor,
    activation: str,
    loss: str,
    rates: Tensor,
    factors: list[Tensor],
    pull: float,
) -> tuple[list[_Step], list[Tensor]]:
    """Give the steps of one task, and its layers after them."""
    steps, layers = [], start
    for step_rates in rates:
        layer_inputs, sums = _sums(layers, inputs, activation)
        gradients = [shares[:, None] * _loss_terms(sums[-1], targets, loss)[0]]
        pushed: list[Tensor] = []
        for layer in reversed(range(1, len(layers))):
            pushed.insert(0, gradients[0] @ layers[layer][:, :-1])
            gradients.insert(0, pushed[0] * _derivatives(sums[layer - 1], activation)[0])
        step = _Step(layers, layer_inputs, sums, pushed, gradients)
        layers = [
            own - step_rates[layer] * factors[layer] * _total_gradient(step, layer, start, pull)
            for layer, own in enumerate(layers)
        ]
        steps.append(step)
    return steps, layers


def _total_gradient(step: _Step, layer: int, start: list[Tensor], pull: float) -> Tensor:
    distance = step.layers[layer] - start[layer]
    return step.gradients[layer].mT @ step.inputs[layer] + pull * distance


def _sums(layers: list[Tensor], inputs: Tensor, activation: str) -> tuple[list[Tensor], list[Tensor]]:
    """Give each layer's inputs, with a constant 1 for the bias, and its sums."""
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}
    layer_inputs: list[Tensor] = []
    sums: list[Tensor] = []
    for layer in layers:
        outputs = functions[activation](sums[-1]) if sums else inputs
        layer_inputs.append(torch.cat([outputs, outputs.new_ones(outputs.size(0), 1)], 1))
        sums.append(layer_inputs[-1] @ layer.mT)
    return layer_inputs, sums


def _derivatives(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Give the first and the second derivative of an activation."""
    if activation == "relu":
        return (z > 0).to(z.dtype), torch.zeros_like(z)
    if activation == "tanh":
        slope = 1 - torch.tanh(z).square()
        return slope, -2 * torch.tanh(z) * slope
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density, density * (2 - z.square())


def _loss_terms(outputs: Tensor, targets: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Give a loss's gradient ``[n, o]``, and its derivatives in outputs ``[n, o, o]`` and target ``[n, o]``."""
    first = outputs[:, :1]
    error = first - targets[:, None]
    if loss == "squared":
        return error, torch.ones_like(error)[:, None], -torch.ones_like(error)
    if loss == "logistic":
        chance = torch.sigmoid(first)
        return chance - targets[:, None], (chance * (1 - chance))[:, None], -torch.ones_like(error)
    precision = torch.exp(-outputs[:, 1:])
    pushed = error * precision
    gradient = torch.cat([pushed, (1 - error * pushed) / 2], 1)
    curvature = torch.cat([precision, -pushed, -pushed, error * pushed / 2], 1).view(-1, 2, 2)
    return gradient, curvature, torch.cat([-precision, pushed], 1)


def _divisor(weights: Tensor, mean: bool) -> Tensor:
    total = weights.sum()
    return torch.where(total > 0, total, 1.0) if mean else torch.ones_like(total)


def _shares(weights: Tensor, mean: bool) -> Tensor:
    return weights / _divisor(weights, mean)


def _rate_factors(
    widths: list[int],
    parameters: Tensor,
    output_scales: Tensor | None,
    input_scales: Tensor | None,
    scales: Tensor | None,
) -> list[Tensor]:
    """Give what each parameter's rate is multiplied by, as layers."""
    if output_scales is not None and input_scales is not None:
        first = output_scales[:, None] * input_scales
        return [first] if scales is None else [first, *_layers(scales, widths[1:])]
    return _layers(torch.ones_like(parameters) if scales is None else scales, widths)


def _layers(parameters: Tensor, widths: list[int]) -> list[Tensor]:
    """Give each layer's weight with its bias as the last column."""
    layers = []
    begin = 0
    for width, height in pairwise(widths):
        weight, bias = parameters[begin : begin + height * (width + 1)].split([height * width, height])
        layers.append(torch.cat([weight.view(height, width), bias[:, None]], 1))
        begin += height * (width + 1)
    return layers


def _flat(layers: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for layer in layers for part in (layer[:, :-1], layer[:, -1])])
