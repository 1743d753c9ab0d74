"""``cosine_sgd_epoch_`` beside the SVD of Surprise, on MovieLens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch
from surprise import SVD, Reader
from surprise import Dataset as SurpriseDataset

from benchmarks import roofline
from benchmarks.ops import Case
from metarec import load_dataset
from metarec.data import Dataset
from metarec.ops import cosine_sgd_epoch_

DIM, EPOCHS = 64, 3


def cases() -> Iterator[Case]:
    """Epochs over the ratings of MovieLens, where METAREC_TEST_DATA has it, and over as many drawn ones elsewhere."""
    folder = os.environ.get("METAREC_TEST_DATA")
    for name, users, items, ratings in (("ml-100k", 943, 1682, 100_000), ("ml-1m", 6040, 3706, 1_000_209)):
        if folder is not None and (Path(folder) / name).is_dir():
            dataset = load_dataset("movielens", path=str(Path(folder) / name))
            yield from epochs(name, *numbers(dataset))
        else:
            yield from epochs(f"as large as {name}", *drawn(users, items, ratings))


def numbers(dataset: Dataset) -> tuple[int, int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give what a factorisation learns from."""
    return len(dataset.users), len(dataset.items), dataset.user, dataset.item, dataset.rating


def drawn(users: int, items: int, ratings: int) -> tuple[int, int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw ratings of users and items, some of which are more often named than others."""
    generator = torch.Generator().manual_seed(0)
    user, item = (
        (count * torch.rand(ratings, generator=generator) ** 3).to(torch.int32) for count in (users, items)
    )
    return users, items, user, item, torch.randint(1, 6, (ratings,), generator=generator).float()


def epochs(
    name: str, users: int, items: int, user: torch.Tensor, item: torch.Tensor, rating: torch.Tensor
) -> Iterator[Case]:
    """Give the epochs by cosine, and by dot product, which is what Surprise computes."""
    frame = pl.DataFrame({"user": user.numpy(), "item": item.numpy(), "rating": rating.numpy()}).to_pandas()
    train = SurpriseDataset.load_from_df(frame, Reader(rating_scale=(1, 5))).build_full_trainset()
    count, generator = len(rating), torch.Generator().manual_seed(0)
    rows = len(user.unique()) + len(item.unique())
    for similarity in ("cosine", "dot"):
        parameters = (
            0.1 * torch.randn(users, DIM, generator=generator),
            0.1 * torch.randn(items, DIM, generator=generator),
            torch.zeros(users),
            torch.zeros(items),
            torch.tensor([1.0, rating.mean()]),
        )

        def ours(parameters: tuple[torch.Tensor, ...] = parameters, similarity: str = similarity) -> None:
            for seed in range(EPOCHS):
                cosine_sgd_epoch_(
                    *parameters, user, item, rating, lr=0.005, l2=0.02, similarity=similarity, seed=seed
                )

        yield Case(
            f"{EPOCHS} epochs over {name}, {count:,} ratings × {DIM}, {similarity}",
            ours=ours,
            work=roofline.cosine_sgd_epoch_(count, rows, DIM, similarity=similarity) * EPOCHS,
            peers={"Surprise SVD": lambda: SVD(n_factors=DIM, n_epochs=EPOCHS).fit(train)},
            least_ratio={"Surprise SVD": 8},
        )
