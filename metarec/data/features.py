"""`Features`: what encoders make of attributes, as one sparse row per entity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The columns ``[start, stop)`` that one attribute fills."""

    attribute: str
    start: int
    stop: int


@dataclass(frozen=True)
class Features:
    """A sparse matrix with one row per entity (CSR), since most attributes name a few of many values.

    Parameters
    ----------
    offsets : int64 [N + 1]
        Row n holds the entries ``offsets[n] : offsets[n + 1]``.
    columns : int64 [E]
        Column of each entry, in ``[0, width)``.
    values : float [E]
        Value of each entry.
    width : int
        Number of columns.
    blocks : tuple of Block
        Which attribute fills which columns, in order and without gaps.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor
    width: int
    blocks: tuple[Block, ...] = ()

    @classmethod
    def empty(cls, count: int, *, dtype: torch.dtype = torch.float32) -> Self:
        """`count` rows of no columns: entities without attributes."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(count + 1, dtype=torch.int64), none, none.to(dtype), 0)

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, values: Tensor, *, count: int, width: int) -> Self:
        """`count` rows of `width` columns that hold the entries (int64 `rows`, int64 `columns`, float `values`)."""
        order = torch.argsort(rows, stable=True)
        offsets = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=count).cumsum(0)])
        return cls(offsets, columns[order], values[order], width)

    @classmethod
    def from_dense(cls, matrix: Tensor, attribute: str) -> Self:
        """The rows of a `matrix` (float [N, width]), whose columns are one attribute's."""
        count, width = matrix.shape
        offsets = torch.arange(count + 1, device=matrix.device) * width
        columns = torch.arange(width, device=matrix.device).repeat(count)
        return cls(offsets, columns, matrix.flatten(), width, (Block(attribute, 0, width),))

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """Put the columns of `parts`, which describe the same entities, side by side."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.width)
        owner = torch.cat([part.owner for part in parts])
        order = torch.argsort(owner, stable=True)
        blocks = tuple(
            Block(block.attribute, block.start + start, block.stop + start)
            for part, start in zip(parts, starts, strict=False)
            for block in part.blocks
        )
        return cls(
            offsets=torch.stack([part.offsets for part in parts]).sum(0),
            columns=torch.cat([part.columns + start for part, start in zip(parts, starts, strict=False)])[
                order
            ],
            values=torch.cat([part.values for part in parts])[order],
            width=starts[-1],
            blocks=blocks,
        )

    @classmethod
    def stack(cls, parts: Sequence[Features]) -> Features:
        """The rows of `parts`, which have the same columns, one part below the other."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.values.numel())
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return replace(
            parts[0],
            offsets=torch.cat([parts[0].offsets[:1], *offsets]),
            columns=torch.cat([part.columns for part in parts]),
            values=torch.cat([part.values for part in parts]),
        )

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @property
    def owner(self) -> Tensor:
        """int64 [E]: the row that each entry belongs to."""
        rows = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=self.columns.numel())

    def rows(self, index: Tensor) -> Features:
        """The features of the entities `index` (int [M]), in that order, repeats allowed."""
        index = index.long()
        counts = self.offsets.diff()[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(self.offsets[:-1][index] - offsets[:-1], counts, output_size=total)
        entry = shift + torch.arange(total, device=index.device)
        return replace(self, offsets=offsets, columns=self.columns[entry], values=self.values[entry])

    def mixed(self, other: Features, share: Tensor) -> Features:
        """``share ∘ X + (1 − share) ∘ Y``: these rows X and as many others Y, weighted by `share` (float [N])."""
        if self.width == 0:
            return self
        mine = replace(self, values=self.values * share[self.owner])
        its = replace(other, values=other.values * (1 - share)[other.owner])
        both = Features.concatenate([mine, its])
        return replace(self, offsets=both.offsets, columns=both.columns % self.width, values=both.values)

    def without(self, left_out: Tensor) -> Features:
        """The same where some attributes are missing: bool [N, number of `blocks`] says whose, and which."""
        stops = torch.tensor([block.stop for block in self.blocks], device=self.columns.device)
        block = torch.bucketize(self.columns, stops, right=True)
        return replace(self, values=self.values.masked_fill(left_out[self.owner, block], 0))

    def project(self, weight: Tensor) -> Tensor:
        """``X @ weight``: float [N, d] of a weight [width, d]; differentiable in the weight."""
        if self.width == 0:
            return weight.new_zeros(len(self), weight.shape[1])
        return torch.nn.functional.embedding_bag(
            self.columns,
            weight,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values.to(weight.dtype),
            include_last_offset=True,
        )

    def dense(self) -> Tensor:
        """float [N, width]: the matrix with its zeros."""
        matrix = self.values.new_zeros(len(self), self.width)
        return matrix.index_put_((self.owner, self.columns), self.values, accumulate=True)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Features:
        """The same features on `device`, their values as `dtype`."""
        return replace(
            self,
            offsets=self.offsets.to(device),
            columns=self.columns.to(device),
            values=self.values.to(device=device, dtype=dtype),
        )
