"""``cosine_scores`` with its gradient beside torch's gathers and cosine similarity."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.timing import CPU
from metarec.ops import cosine_scores

USERS, ITEMS, DIM, PAIRS = 100_000, 50_000, 64, 1_000_000


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Pairs of a large training batch, popular items more often than others; the gradient of both tables, dense."""
    generator = torch.Generator().manual_seed(0)
    users, items = (
        torch.randn(count, DIM, generator=generator).to(device).requires_grad_() for count in (USERS, ITEMS)
    )
    user = torch.randint(USERS, (PAIRS,), generator=generator).to(device)
    item = (ITEMS * torch.rand(PAIRS, generator=generator) ** 3).long().to(device)
    gradient = torch.randn(PAIRS, generator=generator).to(device)

    def ours() -> tuple[Tensor, ...]:
        scores = cosine_scores(users, items, user, item)
        return torch.autograd.grad(scores, (users, items), gradient)

    def by_torch() -> tuple[Tensor, ...]:
        scores = functional.cosine_similarity(users[user], items[item])
        return torch.autograd.grad(scores, (users, items), gradient)

    rows = len(user.unique()) + len(item.unique())
    yield Case(
        f"{PAIRS:,} pairs of {USERS:,} users and {ITEMS:,} items × {DIM}, with gradients",
        ours=ours,
        work=roofline.cosine_scores(PAIRS, rows, DIM)
        + roofline.cosine_scores_backward(PAIRS, rows, DIM, dense=USERS + ITEMS),
        peers={"torch gather + cosine_similarity": by_torch},
        least_ratio={"torch gather + cosine_similarity": 4},
    )
