"""What households buy: the data set that comes with metarec."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Literal

import polars as pl

from metarec import hookimpl
from metarec.data import (
    Columns,
    Dataset,
    EncoderSpec,
    RatingScale,
    Reader,
    Table,
    build_dataset,
)


class CompleteJourney(Reader):
    """Complete Journey: 798 households, 5,743 grocery products, 268,314 pairs over the year 2017.

    The source counts the baskets in which a household bought a product. That makes an explicit preference,
    ``1 + min(4, log2(baskets))`` on a scale from 1 to 5, of which 2 (bought again) is relevant; or implicit feedback,
    1 for whatever was bought. Time is the day of the first purchase, in days since 1970-01-01.

    Households have age, income, home ownership, marital status, size, composition and number of kids; products have
    department, brand, category, type, size and price (dollars per unit). Two products have no attributes.

    Parameters
    ----------
    feedback : "explicit" or "implicit", default "explicit"
        Whether how often an item was bought counts as its rating, or only that it was.
    """

    name = "complete-journey"

    def __init__(self, *, feedback: Literal["explicit", "implicit"] = "explicit") -> None:
        self.feedback = feedback

    def read(self) -> Dataset:
        """The data set, from the files inside the package."""
        explicit = self.feedback == "explicit"
        baskets = _table("baskets")
        preference = 1 + pl.col("baskets").cast(pl.Float64).log(2).clip(upper_bound=4)
        interactions = baskets.frame.with_columns(
            preference=preference.cast(pl.Float32), day=pl.col("first_day").cast(pl.Int32)
        )
        return build_dataset(
            self.name,
            Table(interactions, baskets.source),
            columns=Columns("household", "product", "preference" if explicit else None, "day"),
            entities={"user": _table("households"), "item": _table("products")},
            scale=RatingScale(1.0, 5.0, relevant_from=2.0) if explicit else RatingScale.for_implicit(),
            encoders={
                "item": {
                    "size": EncoderSpec("categorical", {"min_count": 5}),
                    "price": EncoderSpec("binned", {"bins": 8}),
                }
            },
            display={"item": "title"},
        )


def _table(name: str) -> Table:
    with resources.as_file(resources.files(__package__) / f"{name}.parquet") as path:
        return Table(pl.read_parquet(path), path.name)


@hookimpl
def register_datasets(register: Callable[[type[Reader]], None]) -> None:
    """Register `CompleteJourney`."""
    register(CompleteJourney)
