"""Transformers over supports: what is asked attends to what was rated, and to nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from metarec.tasks import Ragged


class Places:
    """Where the entries of T ragged lists stand in a table of T rows, each as long as the longest list and `first`.

    Parameters
    ----------
    lists : Ragged
    first : int, default 0
        Places at the beginning of each row that are for something else.
    """

    def __init__(self, lists: Ragged, first: int = 0) -> None:
        counts, owner = lists.counts, lists.owner
        self.rows = len(lists)
        self.length = first + (int(counts.max()) if len(lists) else 0)
        within = torch.arange(owner.numel(), device=owner.device) - lists.offsets[owner]
        self.entries = owner * self.length + first + within
        begin = torch.arange(self.rows, device=owner.device) * self.length
        heads = begin.unsqueeze(1) + torch.arange(first, device=owner.device)
        self.all = torch.cat([heads.flatten(), self.entries])

    def filled(self) -> Tensor:
        """bool [T, length]: where something stands."""
        table = torch.zeros(self.rows * self.length, dtype=torch.bool, device=self.all.device)
        return table.index_fill(0, self.all, True).view(self.rows, self.length)

    def table(self, values: Tensor) -> Tensor:
        """float [T, length, c]: `values` (float [m, c]), those of `first` before the entries', else 0."""
        table = values.new_zeros(self.rows * self.length, values.shape[1])
        return table.index_copy(0, self.all, values).view(self.rows, self.length, values.shape[1])

    def listed(self, table: Tensor) -> Tensor:
        """float [m, c]: the reverse of `table`."""
        return table.flatten(0, 1).index_select(0, self.all)


class AttentionLayer(nn.Module):
    """A transformer's layer, normalised before each part: ``x ← x + A(x)``, then ``x ← x + F(x)``.

    The rows that attend and those that they attend to are different ones, or the same.

    Parameters
    ----------
    width, heads : int
        Numbers in a row, and the heads that they are divided among.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.memory = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.mixed = nn.Linear(width, width)
        self.rest = nn.Sequential(nn.Linear(width, 4 * width), nn.GLU(), nn.Linear(2 * width, width))

    def remembered(self, rows: Tensor) -> Tensor:
        """float [m, 2 width]: the keys and values of rows that others may attend to."""
        memory: Tensor = self.memory(self.first(rows))
        return memory

    def forward(self, rows: Tensor, places: Places, memory: Tensor, filled: Tensor) -> Tensor:
        """Rows after the layer, float [m, width].

        Parameters
        ----------
        rows : float [m, width]
        places : Places
            Of `rows`.
        memory : float [T, S, 2 width]
            What the rows of each task attend to (`remembered`).
        filled : bool [T, S]
            Where there is something; at least once for each task.
        """
        asked = places.table(self.query(self.first(rows)))
        query, key, value = (self._by_head(part) for part in (asked, *memory.chunk(2, 2)))
        seen = scaled_dot_product_attention(query, key, value, attn_mask=filled[:, None, None])
        rows = rows + self.mixed(places.listed(seen.transpose(1, 2).flatten(2)))
        added: Tensor = self.rest(self.second(rows))
        return rows + added

    def _by_head(self, table: Tensor) -> Tensor:
        parts: Tensor = table.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return parts


class InContext(nn.Module):
    """Layers by which rows read a support: its own rows one another, those of a query the support's.

    Parameters
    ----------
    width, heads, layers : int
    """

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.stack = nn.ModuleList(AttentionLayer(width, heads) for _ in range(layers))

    def read(self, rows: Tensor, places: Places) -> Tensor:
        """float [m, layers × 2 width]: what a query may attend to, of the support's rows (float [m, width])."""
        memories: list[Tensor] = []
        filled = places.filled()
        for layer in self.layers():
            memories.append(layer.remembered(rows))
            rows = layer(rows, places, places.table(memories[-1]), filled)
        return torch.cat(memories, 1)

    def ask(self, rows: Tensor, places: Places, memory: Tensor, support: Places) -> Tensor:
        """float [n, width]: the query's rows after all layers, of each its own task's `memory` (as `read` gives it)."""
        filled = support.filled()
        for layer, part in zip(self.layers(), support.table(memory).chunk(len(self.stack), 2), strict=True):
            rows = layer(rows, places, part, filled)
        return rows

    def layers(self) -> Sequence[AttentionLayer]:
        """The layers, from the first."""
        return cast(Sequence[AttentionLayer], self.stack)
