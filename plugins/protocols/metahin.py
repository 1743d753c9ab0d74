"""The protocol of MetaHIN, on the split that its authors released."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from metarec import hookimpl
from metarec.data import Dataset, Entities
from metarec.errors import DataError
from metarec.tasks import Cell, Partition, Protocol, Split, draw_queries

TRAINING = "meta_training"
SCENARIO_FILES = {
    "warm": "warm_up",
    "new-user": "user_cold_testing",
    "new-item": "item_cold_testing",
    "new-both": "user_and_item_cold_testing",
}
TWINS = {"811": "860", "1741": "1795"}  # films that MovieLens lists twice; the files use one id for both
RATINGS = (13, 100)
QUERIES = 10


class MetaHIN(Protocol):
    """Training set and scenarios are read from files; every task is a user's.

    The training set is all of ``meta_training.json``. In each of the four other files the users with 13 to 100
    ratings are kept; ten of their ratings, drawn at random, are the query, the rest of the file's the support. The
    seed only draws the queries. The ratings of ``warm_up.json`` are of users and items in the training set, but are
    not in it themselves. A few items of ``warm_up.json`` and ``user_cold_testing.json`` have no training rating; they
    stay where the files have them, as new ones.

    Parameters
    ----------
    path : Path
        The folder with the released files: ``NAME.json`` maps user ids to lists of item ids.
    history : bool, default False
        Whether the tasks of warm and new-item may use what is known of their users: then their training ratings are
        in the support as well.

    References
    ----------
    Lu, Fang, Shi 2020. Meta-learning on Heterogeneous Information Networks for Cold-start Recommendation, section
    5.1; the files are those of its code.
    """

    name = "metahin"

    def __init__(self, *, path: Path, history: bool = False) -> None:
        self.path = path
        self.history = history

    def split(self, dataset: Dataset, *, seed: int) -> Split:
        """The training set and one cell per scenario, its supports as large as they are.

        Raises
        ------
        DataError
            The data set is implicit, a file is missing or damaged, or names a rating that the data set lacks.
        """
        if dataset.scale.implicit:
            raise DataError(f"protocol 'metahin': data set {dataset.name!r} is implicit, expected ratings")
        generator = torch.Generator().manual_seed(seed)
        training = _interactions(dataset, self.path / f"{TRAINING}.json")
        partition = Partition.of(dataset, training)
        cells = []
        for scenario, name in SCENARIO_FILES.items():
            interactions = _interactions(dataset, self.path / f"{name}.json")
            cells.append(self._cell(scenario, partition, interactions, training, generator))
        return Split(partition.train, partition.encoders, [cell for cell in cells if len(cell.tasks)])

    def _cell(
        self,
        scenario: str,
        partition: Partition,
        interactions: Tensor,
        training: Tensor,
        generator: torch.Generator,
    ) -> Cell:
        users = partition.dataset.user[interactions]
        least, most = RATINGS
        rest, queries = draw_queries(users, QUERIES, generator, least=least, most=most)
        support = interactions[rest]
        if self.history:
            support = torch.cat([training, support])
        known_item = partition.item_rows >= 0
        tasks = partition.tasks(
            "user",
            support=support,
            query=interactions[queries],
            candidates=known_item if scenario in ("warm", "new-user") else ~known_item,
            history=self.history,
        )
        return Cell(scenario, None, tasks)


def _interactions(dataset: Dataset, file: Path) -> Tensor:
    """int64 [m]: the data set's interactions that a file names, each once.

    A film that the user did not rate, or that is named a second time, stands for its twin.
    """
    pairs = _pairs(file)
    is_first = pairs.to_struct().is_first_distinct()
    named = _lookup(dataset, pairs)
    is_named = named.is_not_null() & is_first
    rest = pairs.filter(~is_named)
    twins = _lookup(dataset, rest.with_columns(pl.col("item").replace(TWINS)))
    if twins.null_count():
        user, item = rest.filter(twins.is_null()).row(0)
        raise DataError(f"{file}: user {user!r} rated item {item!r} there, not in data set {dataset.name!r}")
    interactions = pl.concat([named.filter(is_named), twins]).unique(maintain_order=True)
    return torch.from_numpy(interactions.to_numpy(writable=True))


def _lookup(dataset: Dataset, pairs: pl.DataFrame) -> pl.Series:
    """The data set's interaction of each pair of ids; null where it has none."""
    ratings = pl.DataFrame({"user": dataset.user.numpy(), "item": dataset.item.numpy()})
    rows = pl.DataFrame(
        {"user": _rows(dataset.users, pairs["user"]), "item": _rows(dataset.items, pairs["item"])}
    )
    numbered = ratings.with_row_index("interaction").cast({"interaction": pl.Int64})
    return rows.join(numbered, on=["user", "item"], how="left", maintain_order="left")["interaction"]


def _rows(entities: Entities, ids: pl.Series) -> pl.Series:
    known = entities.ids.cast(pl.String)
    return ids.replace_strict(known, range(len(known)), default=None, return_dtype=pl.Int32)


def _pairs(file: Path) -> pl.DataFrame:
    """``user`` and ``item``, ids as strings: a file's pairs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}), expected a file of MetaHIN's split"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(items, list) for items in content.values()):
        raise DataError(f"{file}: expected an object that maps user ids to lists of item ids")
    users = pl.Series("user", list(content), dtype=pl.String)
    counts = pl.Series([len(items) for items in content.values()], dtype=pl.Int64)
    items = pl.Series("item", [item for items in content.values() for item in items], strict=False)
    owner = pl.int_range(len(users), eager=True).repeat_by(counts).explode()
    return pl.DataFrame({"user": users.gather(owner.drop_nulls()), "item": items.cast(pl.String)})


@hookimpl
def register_protocols(register: Callable[[type[Protocol]], None]) -> None:
    """Register `MetaHIN`."""
    register(MetaHIN)
