"""``cosine_sgd_epoch_`` beside the SVD of Surprise and descent in minibatches in torch, on MovieLens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.timing import CPU, Call
from metarec import load_dataset
from metarec.data import Dataset
from metarec.ops import cosine_sgd_epoch_

DIM, EPOCHS, BATCH, RATE = 64, 3, 8192, 0.005


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Epochs over the ratings of MovieLens, where METAREC_TEST_DATA has it, and over as many drawn ones elsewhere."""
    folder = os.environ.get("METAREC_TEST_DATA")
    for name, users, items, ratings in (("ml-100k", 943, 1682, 100_000), ("ml-1m", 6040, 3706, 1_000_209)):
        if folder is not None and (Path(folder) / name).is_dir():
            dataset = load_dataset("movielens", path=str(Path(folder) / name))
            yield from epochs(name, *numbers(dataset), device)
        else:
            yield from epochs(f"as large as {name}", *drawn(users, items, ratings), device)


def numbers(dataset: Dataset) -> tuple[int, int, Tensor, Tensor, Tensor]:
    """Give what a factorisation learns from."""
    return len(dataset.users), len(dataset.items), dataset.user, dataset.item, dataset.rating


def drawn(users: int, items: int, ratings: int) -> tuple[int, int, Tensor, Tensor, Tensor]:
    """Draw ratings of users and items, some of which are more often named than others."""
    generator = torch.Generator().manual_seed(0)
    user, item = (
        (count * torch.rand(ratings, generator=generator) ** 3).to(torch.int32) for count in (users, items)
    )
    return users, items, user, item, torch.randint(1, 6, (ratings,), generator=generator).float()


def epochs(
    name: str, users: int, items: int, user: Tensor, item: Tensor, rating: Tensor, device: torch.device
) -> Iterator[Case]:
    """Give the epochs by cosine, and by dot product, which is what Surprise computes; these on bfloat16 tables too."""
    on_cpu = {"Surprise SVD": by_surprise(user, item, rating)} if device.type == "cpu" else {}
    count, generator = len(rating), torch.Generator().manual_seed(0)
    rows = len(user.unique()) + len(item.unique())
    ratings = user.to(device), item.to(device), rating.to(device)
    work = f"{EPOCHS} epochs over {name}, {count:,} ratings × {DIM}"
    for similarity in ("cosine", "dot"):
        drawn = (
            0.1 * torch.randn(users, DIM, generator=generator),
            0.1 * torch.randn(items, DIM, generator=generator),
            torch.zeros(users),
            torch.zeros(items),
            torch.tensor([1.0, rating.mean()]),
        )
        parameters = [parameter.to(device) for parameter in drawn]
        yield Case(
            f"{work}, {similarity}",
            ours=by_epochs(parameters, *ratings, similarity),
            work=roofline.cosine_sgd_epoch_(count, rows, DIM, similarity=similarity) * EPOCHS,
            peers={
                **on_cpu,
                f"torch, {BATCH:,} at once": by_minibatches(
                    [parameter.clone() for parameter in parameters], *ratings, similarity
                ),
            },
            least_ratio={"Surprise SVD": 8},
        )
    narrow = [table.bfloat16() for table in parameters[:2]] + [other.clone() for other in parameters[2:]]
    yield Case(
        f"{work} of bfloat16, {similarity}",
        ours=by_epochs(narrow, *ratings, similarity),
        work=roofline.cosine_sgd_epoch_(count, rows, DIM, similarity=similarity, itemsize=2) * EPOCHS,
        peers={"of float32": by_epochs(parameters, *ratings, similarity)},
    )


def by_epochs(parameters: list[Tensor], user: Tensor, item: Tensor, rating: Tensor, similarity: str) -> Call:
    """Descend by the op."""

    def call() -> None:
        for seed in range(EPOCHS):
            cosine_sgd_epoch_(
                *parameters, user, item, rating, lr=RATE, l2=0.02, similarity=similarity, seed=seed
            )

    return call


def by_surprise(user: Tensor, item: Tensor, rating: Tensor) -> Call:
    """Fit the SVD of Surprise."""
    from surprise import SVD, Dataset, Reader

    frame = pl.DataFrame({"user": user.numpy(), "item": item.numpy(), "rating": rating.numpy()}).to_pandas()
    train = Dataset.load_from_df(frame, Reader(rating_scale=(1, 5))).build_full_trainset()
    return lambda: SVD(n_factors=DIM, n_epochs=EPOCHS).fit(train)


def by_minibatches(
    parameters: list[Tensor], user: Tensor, item: Tensor, rating: Tensor, similarity: str
) -> Call:
    """Descend in torch, as one writes it first: a step for many ratings at once instead of one for each."""
    users, items, user_biases, item_biases, head = (leaf.requires_grad_() for leaf in parameters)

    def step(u: Tensor, v: Tensor, y: Tensor) -> None:
        left, right = users[u], items[v]
        scores = (
            functional.cosine_similarity(left, right) if similarity == "cosine" else (left * right).sum(1)
        )
        predicted = head[0] * scores + head[1] + user_biases[u] + item_biases[v]
        gradients = torch.autograd.grad((predicted - y).square().mean() / 2, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= RATE * gradient

    def call() -> None:
        for _ in range(EPOCHS):
            for u, v, y in zip(user.split(BATCH), item.split(BATCH), rating.split(BATCH), strict=True):
                step(u, v, y)

    return call
