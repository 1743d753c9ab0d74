"""`embedding_update_` by `torch.unique` and a sum per row."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.ops.reference.cosine_scores import arithmetic_type
from metarec.ops.reference.indices import check_rows
from metarec.ops.reference.random import round_stochastically, row_noise


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
    seed: int | None,
) -> None:
    check_rows("embedding_update_: rows", rows, table.size(0))
    touched, group = torch.unique(rows.long(), return_inverse=True)
    values = table[touched].to(arithmetic_type(table.dtype))
    gradient = torch.zeros_like(values).index_add_(0, group, gradients.to(values.dtype)) + l2 * values
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
            (1 - torch.tensor(beta, dtype=torch.float64) ** steps[touched]).to(values.dtype)[:, None]
            for beta in (beta1, beta2)
        )
        change = means[touched] / bias1 / ((squares[touched] / bias2).sqrt() + eps)
    values = (1 - lr * weight_decay) * values - lr * change
    if seed is not None:
        values = round_stochastically(values, row_noise(seed, touched.tolist(), table.size(1)))
    table[touched] = values.to(table.dtype)
