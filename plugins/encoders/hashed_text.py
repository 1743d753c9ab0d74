"""Free text, such as a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from metarec import Range, hookimpl
from metarec.data import Features
from metarec.features import Encoder, as_strings, one_per_value

TOKEN = r"[\p{L}\p{N}]+"
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


class HashedText(Encoder):
    """Counts of words in a fixed number of columns, and one column for text without words.

    A word is a run of letters and digits (Unicode classes L and N) in lower case; its column is the 64-bit FNV-1a hash
    of its UTF-8 bytes modulo `buckets`. A text's counts are scaled to length 1. There is nothing to learn, so no word
    is unseen.

    Parameters
    ----------
    buckets : int, default 256
        Columns that words share.

    References
    ----------
    Weinberger et al. 2009, Feature hashing for large scale multitask learning. Fowler, Noll, Vo: FNV-1a.
    """

    name = "hashed-text"

    def __init__(self, *, buckets: Annotated[int, Range(1, 1 << 24)] = 256) -> None:
        self.buckets = buckets

    def fit(self, column: pl.Series) -> Self:
        """Check the type."""
        as_strings(column)
        return self

    @property
    def width(self) -> int:
        """`buckets` and one."""
        return self.buckets + 1

    def transform(self, column: pl.Series) -> Features:
        """Columns: the buckets, missing."""
        words = one_per_value(as_strings(column).str.to_lowercase().str.extract_all(TOKEN))
        distinct = words["value"].drop_nulls().unique()
        buckets = (fnv1a_64(distinct) % np.uint64(self.buckets)).astype(np.int64)
        counts = (
            words.join(pl.DataFrame({"value": distinct, "bucket": buckets}), on="value", how="left")
            .group_by("row", pl.col("bucket").fill_null(self.buckets))
            .len()
            .sort("row", "bucket")
        )
        rows, codes = (torch.from_numpy(counts[name].to_numpy(writable=True)) for name in ("row", "bucket"))
        tf = torch.from_numpy(counts["len"].to_numpy().astype(np.float64))
        length = torch.zeros(len(column), dtype=torch.float64).index_add_(0, rows, tf.square()).sqrt()
        return Features.from_entries(
            rows, codes, (tf / length[rows]).to(torch.float32), count=len(column), width=self.width
        )

    def table(self) -> Mapping[str, Any]:
        """``{"hash": "fnv1a-64", "token": regular expression, "case": "lower", "buckets": number}``."""
        return {"hash": "fnv1a-64", "token": TOKEN, "case": "lower", "buckets": self.buckets}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder with that many buckets."""
        return cls(buckets=int(table["buckets"]))


def fnv1a_64(strings: pl.Series) -> npt.NDArray[np.uint64]:
    """uint64 [N]: the FNV-1a hash of each string's UTF-8 bytes: ``h ← (h xor byte) · prime mod 2⁶⁴`` for every byte."""
    lengths = strings.str.len_bytes().to_numpy().astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    text = np.frombuffer("".join(strings).encode(), dtype=np.uint8).astype(np.uint64)
    starts = (np.cumsum(lengths) - lengths)[order]
    longer = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max(initial=0)), side="right")
    hashes = np.full(len(lengths), FNV_OFFSET)
    # One step per byte of the longest word, over all words that reach it.
    for place, count in enumerate(longer):
        hashes[:count] = (hashes[:count] ^ text[starts[:count] + place]) * FNV_PRIME
    result = np.empty_like(hashes)
    result[order] = hashes
    return result


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `HashedText`."""
    register(HashedText)
