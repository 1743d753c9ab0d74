"""Makes the tables that metarec ships as the data set `complete-journey`.

The source is a folder with the household, product and household-by-product tables of the R package `completejourney`
as CSV (`households.csv.gz`, `products.csv.gz`, `household_product.csv.gz`):

    python scripts/make_complete_journey.py SOURCE plugins/datasets/complete_journey
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
import typer

AGES = ["19-24", "25-34", "35-44", "45-54", "55-64", "65+"]
INCOMES = [
    "Under 15K",
    "15-24K",
    "25-34K",
    "35-49K",
    "50-74K",
    "75-99K",
    "100-124K",
    "125-149K",
    "150-174K",
    "175-199K",
    "200-249K",
    "250K+",
]


class CompleteJourney(NamedTuple):
    """The three tables."""

    baskets: pl.DataFrame
    households: pl.DataFrame
    products: pl.DataFrame


def make(pairs: pl.DataFrame, households: pl.DataFrame, products: pl.DataFrame) -> CompleteJourney:
    """Keep and type what the data set needs.

    Parameters
    ----------
    pairs : DataFrame
        ``household_id, product_id, n_baskets, quantity, sales_value, first_day``.
    households, products : DataFrame
        As in the source, ids and text as they stand there.
    """
    return CompleteJourney(
        baskets=pairs.select(
            household=pl.col("household_id").cast(pl.Int32),
            product=pl.col("product_id").cast(pl.Int32),
            baskets=pl.col("n_baskets").cast(pl.Int16),
            first_day=pl.col("first_day").str.to_date(),
        ).sort("household", "product"),
        households=households.select(
            household=pl.col("household_id").cast(pl.Int32),
            age=pl.col("age").cast(pl.Enum(AGES)),
            income=pl.col("income").cast(pl.Enum(INCOMES)),
            home_ownership="home_ownership",
            marital_status="marital_status",
            household_size=_at_least("household_size"),
            composition="household_comp",
            kids=_at_least("kids_count"),
        ).sort("household"),
        products=products.select(
            product=pl.col("product_id").cast(pl.Int32),
            title=_title(),
            department="department",
            brand="brand",
            category="product_category",
            type="product_type",
            size="package_size",
        )
        .join(_prices(pairs), on="product", how="left")
        .sort("product"),
    )


def _at_least(count: str) -> pl.Expr:
    """The numbers of a column such as 1, 2, 3+."""
    return pl.col(count).cast(pl.String).str.strip_suffix("+").cast(pl.Int8)


def _title() -> pl.Expr:
    kind = pl.concat_str(
        [pl.col("product_category").str.to_titlecase(), pl.col("product_type").str.to_titlecase()],
        separator=": ",
        ignore_nulls=True,
    ).replace("", None)
    size = pl.col("package_size").str.to_lowercase()
    brand = pl.when(pl.col("brand") == "Private").then(pl.lit("store brand"))
    return pl.concat_str([kind, size, brand], separator=", ", ignore_nulls=True).replace("", None)


def _prices(pairs: pl.DataFrame) -> pl.DataFrame:
    """Dollars per unit: the median over households, whose coupons, returns and weighed goods are outliers."""
    return (
        pairs.filter(pl.col("quantity") > 0, pl.col("sales_value") > 0)
        .group_by(product=pl.col("product_id").cast(pl.Int32))
        .agg(price=(pl.col("sales_value") / pl.col("quantity")).median().round(2))
    )


def main(
    source: Annotated[Path, typer.Argument(help="Folder with the source's three tables.")],
    target: Annotated[Path, typer.Argument(help="Folder to write the Parquet files to.")],
) -> None:
    """Read the source and write one Parquet file per table."""
    tables = make(
        pl.read_csv(source / "household_product.csv.gz"),
        pl.read_csv(source / "households.csv.gz"),
        pl.read_csv(source / "products.csv.gz", infer_schema_length=None),
    )
    for name, table in tables._asdict().items():
        path = target / f"{name}.parquet"
        table.write_parquet(path, compression="zstd", compression_level=19, statistics=False)
        typer.echo(f"{path}: {table.height:,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
