"""`cosine_sgd_epoch_`: the order of an epoch's ratings, and one step after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metarec.ops.reference.cosine_scores import NORM_EPSILON
from metarec.ops.reference.indices import check_rows
from metarec.ops.reference.random import (
    MASK,
    STEP,
    round_stochastically,
    row_noise,
    split_mix,
    stream_state,
)


class _Random:
    """A stream of SplitMix64 for every use."""

    def __init__(self, seed: int, stream: int) -> None:
        self._state = stream_state(seed, stream)

    def shuffle(self, values: list[int]) -> list[int]:
        for left in range(len(values), 1, -1):
            self._state = self._state + STEP & MASK
            other = (split_mix(self._state) >> 32) * left >> 32
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


def sgd_rounds(
    user: Tensor, item: Tensor, users: int, items: int, seed: int
) -> Iterator[dict[int, list[int]]]:
    """Give the rounds of an epoch: blocks by their number, which share neither users nor items, of ratings in order."""
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
        yield {index: _Random(seed, 3 + index).shuffle(blocks[index]) for index in indices}


def _step_noise(seed: int, block: int, place: int, dim: int) -> Tensor:
    """Give the noise that rounds the user's and the item's row, ``[2, dim]``, after the step at a place of a block."""
    return row_noise(seed, [(2 * block + side + 1 << 32) + place for side in (0, 1)], dim)


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
    head_lr: float,
) -> Tensor:
    wrong = ~((rating >= 0) & (rating <= 1)) if logistic else ~rating.isfinite()
    if wrong.any():
        entry = int(wrong.nonzero()[0])
        expected = "from 0 to 1 for the logistic loss" if logistic else "finite"
        raise ValueError(
            f"cosine_sgd_epoch_: ratings must be {expected}, got {float(rating[entry])} at {entry}"
        )
    check_rows("cosine_sgd_epoch_: users", user, users.size(0))
    check_rows("cosine_sgd_epoch_: items", item, items.size(0))
    loss = torch.zeros((), dtype=torch.float64, device=users.device)
    for blocks in sgd_rounds(user, item, users.size(0), items.size(0), seed):
        heads = head.repeat(len(blocks), 1)
        for own_head, (block, entries) in zip(heads, blocks.items(), strict=True):
            for place, entry in enumerate(entries):
                row, column = int(user[entry]), int(item[entry])
                rows = torch.stack([users[row], items[column]]).to(head.dtype)
                biases = user_biases[row], item_biases[column]
                loss += _sgd_step(rows, biases, own_head, rating[entry], lr, l2, cosine, logistic, head_lr)
                if users.dtype == torch.bfloat16:
                    rows = round_stochastically(rows.float(), _step_noise(seed, block, place, users.size(1)))
                users[row], items[column] = rows
        head.copy_(heads.mean(0))
    return loss / rating.numel()


def _sgd_step(
    rows: Tensor,
    biases: tuple[Tensor, Tensor],
    head: Tensor,
    rating: Tensor,
    lr: float,
    l2: float,
    cosine: bool,
    logistic: bool,
    head_lr: float,
) -> Tensor:
    """Make one step, on rows in the type of arithmetic and views of the rest, and give the loss before it."""
    u, v = rows.clone().unbind()
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
    head -= head_lr * slope * torch.stack([similarity, torch.ones_like(similarity)])
    return loss
