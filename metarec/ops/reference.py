"""The native ops in plain torch: the definition that every kernel is checked against.

Each function has the name and the arguments of the op that it defines. They are also the kernels of last resort:
of a build without a C++ compiler, and of devices that have no kernel of their own. The forward functions are
differentiable by torch itself, which the tests use to check the hand-derived gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPSILON = 1e-12
"""A norm below this counts as this, so that the cosine with a zero vector is zero."""

CODE_GROUP = 16
"""Items whose codes lie side by side in the compact table."""

_TILE_SCORES = 1 << 24


def _segments(offsets: Tensor) -> Iterator[slice]:
    return (slice(begin, end) for begin, end in pairwise(offsets.tolist()))


def _check_offsets(what: str, offsets: Tensor, count: int) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) != count or (offsets.diff() < 0).any():
        raise ValueError(f"{what} must ascend from 0 to {count}, got {_shown(offsets)}")


def _shown(values: Tensor) -> str:
    head = ", ".join(str(int(value)) for value in values[:8])
    return f"[{head}, ...]" if values.numel() > 8 else f"[{head}]"


def _check_precision(what: str, precision: Tensor, wrong: Tensor, expected: str) -> None:
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{what} must be {expected}, got {float(precision[row])} at {row}")


def _cholesky(matrices: Tensor, what: str) -> Tensor:
    factors: Tensor
    factors, info = torch.linalg.cholesky_ex(matrices)
    if info.any():
        task = f" of task {int(info.reshape(-1).nonzero()[0])}" if matrices.dim() == 3 else ""
        raise ValueError(f"{what}{task} is not positive definite")
    return factors


def _symmetric(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).mT


def gaussian_posterior(
    features: Tensor,
    targets: Tensor,
    precision: Tensor,
    offsets: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    tasks, rank = offsets.numel() - 1, features.size(1)
    _check_offsets("gaussian_posterior: offsets", offsets, features.size(0))
    wrong = ~(precision.isfinite() & (precision >= 0))
    _check_precision("gaussian_posterior: precision", precision, wrong, "finite and not negative")
    scaled = features * precision[:, None]
    prior = _symmetric(prior_precision)
    gram = [scaled[rows].mT @ features[rows] for rows in _segments(offsets)]
    shift = [scaled[rows].mT @ targets[rows] for rows in _segments(offsets)]
    zeros = features.new_zeros(tasks, rank, rank)
    total = prior + (torch.stack(gram) if gram else zeros)
    cholesky = _cholesky(total, "gaussian_posterior: the posterior precision")
    natural = (prior @ prior_mean[..., None])[..., 0] + (torch.stack(shift) if shift else zeros[:, 0])
    mean = torch.cholesky_solve(natural[..., None], cholesky)[..., 0]

    deviation = mean - prior_mean
    counted = precision > 0
    owner = torch.repeat_interleave(torch.arange(tasks, device=offsets.device), offsets.diff())
    residual = targets - (features * mean[owner]).sum(1)
    terms = torch.where(counted, torch.log(torch.where(counted, precision, 1.0)) - math.log(2 * math.pi), 0.0)
    misfit = (deviation[:, None, :] @ prior @ deviation[..., None])[:, 0, 0]
    misfit = misfit.index_add(0, owner, precision * residual.square() - terms)
    log_prior = (
        _cholesky(prior, "gaussian_posterior: the prior precision").diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    log_posterior = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mean, cholesky, log_prior - log_posterior - misfit / 2


def gaussian_posterior_backward(
    grad_mean: Tensor,
    grad_cholesky: Tensor,
    grad_log_evidence: Tensor,
    features: Tensor,
    targets: Tensor,
    precision: Tensor,
    offsets: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
    mean: Tensor,
    cholesky: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tasks = offsets.numel() - 1
    owner = torch.repeat_interleave(torch.arange(tasks, device=offsets.device), offsets.diff())
    prior = _symmetric(prior_precision)
    deviation = mean - prior_mean
    evidence = grad_log_evidence[:, None, None]

    # What reaches the posterior precision, through its Cholesky factor, the mean and the evidence.
    inner = (cholesky.mT @ grad_cholesky.tril()).tril()
    inner = inner - inner.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
    inner = inner + inner.mT - evidence * torch.eye(mean.size(1), dtype=mean.dtype, device=mean.device)
    half = torch.linalg.solve_triangular(cholesky.mT, inner, upper=True)
    grad_total = torch.linalg.solve_triangular(cholesky, half, upper=False, left=False) / 2
    solved = torch.cholesky_solve(grad_mean[..., None], cholesky)[..., 0]
    outer = solved[:, :, None] * mean[:, None, :]
    grad_total = grad_total - (outer + outer.mT) / 2

    pushed = features.new_empty(features.shape)
    for task, rows in enumerate(_segments(offsets)):
        pushed[rows] = features[rows] @ grad_total[task]
    residual = targets - (features * mean[owner]).sum(1)
    along = (features * solved[owner]).sum(1)
    evidence_of = grad_log_evidence[owner]
    grad_features = precision[:, None] * (
        2 * pushed + targets[:, None] * solved[owner] + (evidence_of * residual)[:, None] * mean[owner]
    )
    grad_targets = precision * (along - evidence_of * residual)
    inverse = torch.where(precision > 0, 1 / torch.where(precision > 0, precision, 1.0), 0.0)
    grad_precision = (
        (features * pushed).sum(1) + targets * along + evidence_of * (inverse - residual.square()) / 2
    )

    spread = deviation[:, :, None] * deviation[:, None, :]
    lift = solved[:, :, None] * prior_mean.expand_as(mean)[:, None, :]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(prior))
    grad_prior_precision = grad_total + (lift + lift.mT) / 2 + evidence * (covariance - spread) / 2
    grad_prior_mean = (prior @ (solved + grad_log_evidence[:, None] * deviation)[..., None])[..., 0]
    if prior_mean.dim() == 1:
        grad_prior_mean = grad_prior_mean.sum(0)
    if prior_precision.dim() == 2:
        grad_prior_precision = grad_prior_precision.sum(0)
    return grad_features, grad_targets, grad_precision, grad_prior_mean, grad_prior_precision


def gaussian_update(
    mean: Tensor, cholesky: Tensor, features: Tensor, targets: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    _check_precision("gaussian_update: precision", precision, ~precision.isfinite(), "finite")
    total = cholesky @ cholesky.mT + precision[:, None, None] * features[:, :, None] * features[:, None, :]
    updated = _cholesky(total, "gaussian_update: the updated precision")
    residual = targets - (features * mean).sum(1)
    step = torch.cholesky_solve(((precision * residual)[:, None] * features)[..., None], updated)[..., 0]
    return mean + step, updated


def cosine_topk_prepare(items: Tensor, cosine: bool, compact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, dim = items.shape
    norms = torch.linalg.vector_norm(items, dim=1, dtype=torch.float64)
    largest_norm = F.pad(norms.nan_to_num(0, math.inf), (0, 1)).amax(0, keepdim=True)
    groups, pairs = -(-count // CODE_GROUP) if compact else 0, -(-dim // 2)
    table = norms.new_zeros(groups * CODE_GROUP, 2 * pairs)
    table[:count, :dim] = items[: table.size(0)]
    finite = table.isfinite().all(1)
    table[~finite] = 0
    scales = F.pad(table.abs(), (0, 1)).amax(1) / 127
    codes = (table / scales.where(scales > 0, 1.0)[:, None]).round()
    errors = torch.linalg.vector_norm(table - scales[:, None] * codes, dim=1).where(finite, math.inf)
    bounds = torch.stack([scales, errors])
    if cosine and compact:
        bounds[:, :count] /= norms.clamp_min(NORM_EPSILON).where(finite[:count], 1.0)
    return (
        norms,
        largest_norm,
        codes.to(torch.int8).view(groups, CODE_GROUP, pairs, 2).transpose(1, 2),
        bounds.float().view(2, groups, CODE_GROUP).transpose(0, 1),
    )


def cosine_topk(
    queries: Tensor,
    items: Tensor,
    norms: Tensor,
    largest_norm: Tensor,
    codes: Tensor,
    code_bounds: Tensor,
    k: int,
    excluded_offsets: Tensor | None,
    excluded_rows: Tensor | None,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    table, left = items.double(), queries.double()
    lengths = norms.clamp_min(NORM_EPSILON)
    query_lengths = torch.linalg.vector_norm(left, dim=1, keepdim=True).clamp_min(NORM_EPSILON)
    if excluded_offsets is not None and excluded_rows is not None:
        _check_offsets("cosine_topk: excluded offsets", excluded_offsets, excluded_rows.size(0))
        outside = (excluded_rows < 0) | (excluded_rows >= items.size(0))
        if outside.any():
            row = int(excluded_rows[outside][0])
            raise ValueError(f"cosine_topk: excluded rows must be from 0 to {items.size(0) - 1}, got {row}")
    scores = queries.new_empty(queries.size(0), k)
    rows = torch.empty(queries.size(0), k, dtype=torch.int64, device=queries.device)
    step = max(1, _TILE_SCORES // max(1, items.size(0)))
    for begin in range(0, queries.size(0), step):
        tile = left[begin : begin + step] @ table.mT
        if cosine:
            tile = tile / (query_lengths[begin : begin + step] * lengths)
        tile = tile.to(queries.dtype)
        tile = torch.where(tile.isnan(), -math.inf, tile)
        if excluded_offsets is not None and excluded_rows is not None:
            bounds = excluded_offsets[begin : begin + tile.size(0) + 1]
            owner = torch.repeat_interleave(torch.arange(tile.size(0), device=tile.device), bounds.diff())
            tile[owner, excluded_rows[int(bounds[0]) : int(bounds[-1])]] = -math.inf
        best, chosen = _topk_lowest_row(tile, k)
        scores[begin : begin + step] = best
        rows[begin : begin + step] = chosen
    return scores, rows


def _topk_lowest_row(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k best of each row, equal scores by lower column; torch.topk leaves the order of equals open."""
    if k == 0:
        return scores[:, :0], torch.empty(scores.size(0), 0, dtype=torch.int64, device=scores.device)
    last = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > last, scores == last
    keep = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = keep.nonzero()[:, 1].view(scores.size(0), k)
    best, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return best, torch.where(best > -math.inf, columns.gather(1, order), -1)


def _check_rows(what: str, rows: Tensor, count: int) -> None:
    wrong = (rows < 0) | (rows >= count)
    if wrong.any():
        entry = int(wrong.nonzero()[0])
        raise ValueError(f"{what} must be from 0 to {count - 1}, got {int(rows[entry])} at {entry}")


def _check_pairs(left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor) -> None:
    _check_rows("cosine_scores: rows of the first table", left_rows, left.size(0))
    _check_rows("cosine_scores: rows of the second table", right_rows, right.size(0))


def arithmetic_type(stored: torch.dtype) -> torch.dtype:
    """Give the type that values of a type are computed in."""
    return torch.float32 if stored == torch.bfloat16 else stored


def cosine_scores(
    left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Give the cosine of each pair, and one over the product of its norms; ``sparse_grad`` is for autograd."""
    _check_pairs(left, right, left_rows, right_rows)
    u, v = (
        table[rows.long()].to(arithmetic_type(table.dtype))
        for table, rows in ((left, left_rows), (right, right_rows))
    )
    inverse_norms = 1 / (_length(u) * _length(v))[:, 0]
    return (u * v).sum(1) * inverse_norms, inverse_norms


def _length(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return norms.clamp_min(NORM_EPSILON)


def cosine_scores_gradient(
    gradient: Tensor,
    scores: Tensor,
    inverse_norms: Tensor,
    left: Tensor,
    right: Tensor,
    left_rows: Tensor,
    right_rows: Tensor,
) -> Tensor:
    """Give the gradient of the first table."""
    _check_pairs(left, right, left_rows, right_rows)
    v = right[right_rows.long()].to(scores.dtype)
    u, rows = left.to(scores.dtype), left_rows.long()
    sums = torch.zeros_like(u).index_add_(0, rows, (gradient * inverse_norms)[:, None] * v)
    along = u.new_zeros(u.size(0)).index_add_(0, rows, gradient * scores)
    norms = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    direction = torch.where(norms > NORM_EPSILON, u / norms, 0)
    total = sums - along[:, None] * direction / norms.clamp_min(NORM_EPSILON)
    return torch.where(norms <= NORM_EPSILON, 0, total).to(left.dtype)


def cosine_scores_row_gradient(
    gradient: Tensor,
    scores: Tensor,
    inverse_norms: Tensor,
    left: Tensor,
    right: Tensor,
    left_rows: Tensor,
    right_rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give the distinct rows of the first table that the pairs name, ascending, and their gradients."""
    table = cosine_scores_gradient(gradient, scores, inverse_norms, left, right, left_rows, right_rows)
    rows = torch.unique(left_rows.long())
    return rows, table[rows]


def embedding_update_(
    table: Tensor,
    state: list[Tensor],
    rows: Tensor,
    gradients: Tensor,
    rule: str,
    lr: float,
    l2: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    _check_rows("embedding_update_: rows", rows, table.size(0))
    touched, group = torch.unique(rows.long(), return_inverse=True)
    values = table[touched]
    gradient = torch.zeros_like(values).index_add_(0, group, gradients) + l2 * values
    if rule == "sgd":
        change = gradient
    elif rule == "adagrad":
        (sums,) = state
        sums[touched] += gradient.square().sum(1) / max(table.size(1), 1)
        change = gradient / (sums[touched].sqrt() + eps)[:, None]
    else:
        means, squares, steps = state
        steps[touched] += 1
        means[touched] = beta1 * means[touched] + (1 - beta1) * gradient
        squares[touched] = beta2 * squares[touched] + (1 - beta2) * gradient.square()
        bias1, bias2 = (
            (1 - torch.tensor(beta, dtype=torch.float64) ** steps[touched]).to(table.dtype)[:, None]
            for beta in (beta1, beta2)
        )
        change = means[touched] / bias1 / ((squares[touched] / bias2).sqrt() + eps)
    table[touched] = (1 - lr * weight_decay) * values - lr * change


_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


class _Random:
    """SplitMix64 (Steele, Lea and Flood 2014), a stream for every use."""

    def __init__(self, seed: int, stream: int) -> None:
        self._state = _mix(seed ^ _mix(stream + _STEP & _MASK))

    def shuffle(self, values: list[int]) -> list[int]:
        for left in range(len(values), 1, -1):
            self._state = self._state + _STEP & _MASK
            other = (_mix(self._state) >> 32) * left >> 32
            values[left - 1], values[other] = values[other], values[left - 1]
        return values


def _groups_of(named: Tensor, rows: int, groups: int, random: _Random) -> list[int]:
    counts = torch.bincount(named.long(), minlength=rows).tolist()
    group, before = [0] * rows, 0
    for row in random.shuffle(list(range(rows))):
        if counts[row]:
            group[row] = before * groups // named.numel()
            before += counts[row]
    return group


def sgd_rounds(user: Tensor, item: Tensor, users: int, items: int, seed: int) -> Iterator[list[list[int]]]:
    """Give the rounds of an epoch: each a list of blocks, which share neither users nor items, of ratings in order."""
    groups = 1
    while groups < 64 and 4 * groups * groups * 512 <= user.numel():
        groups *= 2
    user_group = _groups_of(user, users, groups, _Random(seed, 0))
    item_group = _groups_of(item, items, groups, _Random(seed, 1))
    blocks: list[list[int]] = [[] for _ in range(groups * groups)]
    for entry, (row, column) in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        blocks[user_group[row] * groups + item_group[column]].append(entry)
    for offset in _Random(seed, 2).shuffle(list(range(groups))):
        indices = [group * groups + (group + offset) % groups for group in range(groups)]
        yield [_Random(seed, 3 + index).shuffle(blocks[index]) for index in indices]


def cosine_sgd_epoch_(
    users: Tensor,
    items: Tensor,
    user_biases: Tensor,
    item_biases: Tensor,
    head: Tensor,
    user: Tensor,
    item: Tensor,
    rating: Tensor,
    lr: float,
    l2: float,
    cosine: bool,
    logistic: bool,
    seed: int,
) -> Tensor:
    wrong = ~((rating >= 0) & (rating <= 1)) if logistic else ~rating.isfinite()
    if wrong.any():
        entry = int(wrong.nonzero()[0])
        expected = "from 0 to 1 for the logistic loss" if logistic else "finite"
        raise ValueError(
            f"cosine_sgd_epoch_: ratings must be {expected}, got {float(rating[entry])} at {entry}"
        )
    _check_rows("cosine_sgd_epoch_: users", user, users.size(0))
    _check_rows("cosine_sgd_epoch_: items", item, items.size(0))
    loss = torch.zeros((), dtype=torch.float64, device=users.device)
    for blocks in sgd_rounds(user, item, users.size(0), items.size(0), seed):
        heads = head.repeat(len(blocks), 1)
        for own_head, block in zip(heads, blocks, strict=True):
            for entry in block:
                row, column = int(user[entry]), int(item[entry])
                rows, biases = (users[row], items[column]), (user_biases[row], item_biases[column])
                loss += _sgd_step(rows, biases, own_head, rating[entry], lr, l2, cosine, logistic)
        head.copy_(heads.mean(0))
    return loss / rating.numel()


def _sgd_step(
    rows: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
    head: Tensor,
    rating: Tensor,
    lr: float,
    l2: float,
    cosine: bool,
    logistic: bool,
) -> Tensor:
    """Make one step, on views of the parameters, and give the loss before it."""
    u, v = (row.clone() for row in rows)
    product = u @ v
    norms = [torch.linalg.vector_norm(row) for row in (u, v)]
    lengths = [norm.clamp_min(NORM_EPSILON) for norm in norms] if cosine else [1.0, 1.0]
    similarity = product / (lengths[0] * lengths[1])
    predicted = head[0] * similarity + head[1] + biases[0] + biases[1]
    if logistic:
        loss = torch.nn.functional.softplus(predicted) - rating * predicted
        slope = torch.sigmoid(predicted) - rating
    else:
        loss = (predicted - rating).square() / 2
        slope = predicted - rating
    for row, partner, own, norm in ((rows[0], v, u, norms[0]), (rows[1], u, v, norms[1])):
        direction = partner / (lengths[0] * lengths[1])
        if cosine:
            direction = direction - similarity * own / norm.square() if norm > NORM_EPSILON else 0 * own
        row -= lr * (slope * head[0] * direction + l2 * own)
    for bias in biases:
        bias -= lr * (slope + l2 * bias)
    head -= lr * slope * torch.stack([similarity, torch.ones_like(similarity)])
    return loss


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
    _check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    _check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    predictions = [query.new_empty(0, widths[-1])]
    for own, asked in zip(_segments(support_offsets), _segments(query_offsets), strict=True):
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
    for own, asked in zip(_segments(support_offsets), _segments(query_offsets), strict=True):
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
    _check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    sum_rates = rates[:, :1] if output_scales is None else rates[:, :1] * output_scales
    adapted = [parameters.new_empty(0, parameters.size(0))]
    coefficients = [support.new_empty(0, widths[1])]
    for own in _segments(support_offsets):
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
    _check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    size = widths[0] * widths[1]
    compact = adapted.size(1) != parameters.size(0)
    predictions = [query.new_empty(0, widths[-1])]
    for own, asked, task in zip(
        _segments(support_offsets), _segments(query_offsets), adapted.unbind(), strict=True
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
    _check_offsets("inner_loop: support_offsets", support_offsets, support.size(0))
    _check_offsets("inner_loop: query_offsets", query_offsets, query.size(0))
    factors = _rate_factors(widths, parameters, output_scales, input_scales, scales)
    start = _layers(parameters, widths)
    effects = [query.new_empty(0, widths[-1])]
    for own, asked in zip(_segments(support_offsets), _segments(query_offsets), strict=True):
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
