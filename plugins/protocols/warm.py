"""Plain cross-validation: users and items that are all known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch

from metarec import Range, hookimpl
from metarec.data import Dataset
from metarec.errors import DataError
from metarec.tasks import Cell, Partition, Protocol, Split


class Warm(Protocol):
    """Each rating is in one of k parts, drawn at random; one part is the query, the others are for training.

    Seeds 0 to k − 1 take the parts of one division in turn, the next k seeds those of another, so that a run over k
    seeds predicts every rating once. Every task is a user's; its support is all of the user's training ratings. Ratings
    by users or of items that have no training rating are left out of the query.

    Explicit ratings are ranked in two lists: the query, and the catalogue, which is all known items but those of the
    support. Implicit feedback is ranked in the catalogue only.

    Parameters
    ----------
    folds : int, default 5
        Parts k.
    """

    name = "warm"

    def __init__(self, *, folds: Annotated[int, Range(2, 1000)] = 5) -> None:
        self.folds = folds

    def split(self, dataset: Dataset, *, seed: int) -> Split:
        """The training set and one cell.

        Raises
        ------
        DataError
            No rating is left to train on, or none for the query.
        """
        division, part = divmod(seed, self.folds)
        shuffled = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(division))
        held_out = shuffled % self.folds == part
        training = (~held_out).nonzero().flatten()
        partition = Partition.of(dataset, training)
        query = (held_out & partition.known("user") & partition.known("item")).nonzero().flatten()
        if query.numel() == 0:
            raise DataError(
                f"protocol 'warm': no rating of data set {dataset.name!r} that is held out has a known user and item"
            )
        tasks = partition.tasks("user", support=training, query=query, candidates=partition.item_rows >= 0)
        lists = ("catalogue",) if dataset.scale.implicit else ("query", "catalogue")
        return Split(partition.train, partition.encoders, [Cell("warm", None, tasks, lists)])


@hookimpl
def register_protocols(register: Callable[[type[Protocol]], None]) -> None:
    """Register `Warm`."""
    register(Warm)
