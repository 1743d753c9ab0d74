"""`embedding_update_` by `torch.unique` and a sum per row."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.ops.reference.indices import check_rows


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
    check_rows("embedding_update_: rows", rows, table.size(0))
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
