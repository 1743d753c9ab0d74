"""`Recommender`: a fitted algorithm with all that serving needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor

from metarec.data import Features, RatingScale, Side, partner_side
from metarec.device import usable_device
from metarec.errors import DataError, unknown_name
from metarec.features import SideEncoders
from metarec.learning import Adapted, Algorithm, Factorized
from metarec.ops import PreparedItems, cosine_topk, prepare_items
from metarec.serving.catalogue import Catalogue
from metarec.serving.newcomer import Newcomer
from metarec.tasks import EntityRows, Query, Split, Support


@dataclass(frozen=True)
class Recommender:
    """Recommends to newcomers; what an artifact holds.

    Parameters
    ----------
    algorithm : Algorithm
        Fitted, on the device.
    encoders : SideEncoders
        The fitted encoders of both sides.
    users, items : Catalogue
        The known entities.
    scale : RatingScale
        What ratings mean.
    device : torch.device, default CPU
        Where it works.
    """

    algorithm: Algorithm
    encoders: SideEncoders
    users: Catalogue
    items: Catalogue
    scale: RatingScale
    device: torch.device = torch.device("cpu")

    @classmethod
    def from_split(cls, algorithm: Algorithm, split: Split) -> Recommender:
        """The recommender of an algorithm on the CPU that was fitted on ``split.train``."""
        train = split.train
        users, items = Catalogue.of(train, "user"), Catalogue.of(train, "item")
        return cls(algorithm, split.encoders, users, items, train.scale)

    def to(self, device: torch.device | str) -> Recommender:
        """The same at work on `device`, with an algorithm of its own.

        Raises
        ------
        ConfigError
            The device cannot be used here.
        """
        where = usable_device(device)
        return replace(self, algorithm=copy.deepcopy(self.algorithm).to(where), device=where)

    def catalogue(self, side: Side) -> Catalogue:
        """The known entities of a side."""
        return self.users if side == "user" else self.items

    def adapt(
        self,
        ratings: Mapping[Any, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        *,
        side: Side = "user",
    ) -> Newcomer:
        """Adapt to a new user, or to a new item.

        Parameters
        ----------
        ratings : mapping of item (str or int) to number, optional
            What the newcomer rated, by id or by name; where feedback is implicit the number is 1.
        attributes : mapping of name to value, optional
            What is known of the newcomer; the rest is missing. Text is converted to the attribute's type.
        side : "user" or "item", default "user"
            Which side the newcomer is on; a new item is rated by users and gets users recommended.

        Raises
        ------
        DataError
            An unknown or ambiguous name, a rating off the scale, an unknown attribute or a value of the wrong type;
            or an algorithm that does not answer for newcomers on that side.
        """
        if f"new-{side}" not in self.algorithm.scenarios:
            can = ", ".join(self.algorithm.scenarios)
            raise DataError(
                f"algorithm {self.algorithm.name!r} does not answer for a new {side}, only in {can}"
            )
        rated: dict[int, float] = {}
        for called, value in (ratings or {}).items():
            row = self.catalogue(partner_side(side)).row(called)
            if row in rated:
                raise DataError(f"{partner_side(side)} {called!r} is rated twice, by its id and by its name")
            rated[row] = self.check_rating(called, value)
        entity = EntityRows(torch.tensor([-1]), self._features(side, attributes or {})).to(self.device)
        support = self.support(side, entity, rated)
        return Newcomer(self, side, entity, rated, self.algorithm.adapt(support))

    def unseen(self, attributes: Mapping[str, Any], *, side: Side = "user") -> list[str]:
        """For each value that no known entity has, a line that says so, with the nearest that one has.

        Such a value is not wrong: it is encoded as unseen. It may be misspelt.
        """
        return [
            f"{side} attribute {name!r}: {unknown_name('value', str(value), known)}"
            for name, given in attributes.items()
            if (known := self.encoders.side(side).encoders[name].known_values) is not None
            for value in (given if isinstance(given, list) else [given])
            if value is not None and str(value) not in known
        ]

    def check_rating(self, called: str | int, value: float) -> float:
        """`value`, if it is a rating on the scale; `called` is what the error calls the thing rated."""
        scale = self.scale
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"rating of {called!r} is {value!r}, expected a number")
        if scale.implicit and value != 1:
            raise DataError(f"rating of {called!r} is {value:g}, expected 1: the feedback is implicit")
        if not scale.low <= value <= scale.high:
            raise DataError(f"rating of {called!r} is {value:g}, expected {scale.low:g} to {scale.high:g}")
        return float(value)

    def support(self, side: Side, entity: EntityRows, rated: Mapping[int, float]) -> Support:
        """The support of one task: an entity and its ratings by partner row."""
        return Support(
            side=side,
            entities=entity,
            partners=self.partners(side),
            offsets=torch.tensor([0, len(rated)], device=self.device),
            partner=torch.tensor(list(rated), dtype=torch.int64, device=self.device),
            rating=torch.tensor(list(rated.values()), dtype=torch.float32, device=self.device),
        )

    def partners(self, side: Side) -> EntityRows:
        """The known entities of the other side, as a task on `side` sees them."""
        if side not in self._partners:
            known = self.catalogue(partner_side(side))
            rows = EntityRows(torch.arange(len(known)), known.features)
            self._partners[side] = rows.to(self.device)
        return self._partners[side]

    def best(self, side: Side, adapted: Adapted, k: int, *, excluded: Tensor) -> Tensor:
        """int64 [k]: the rows of the partners that one task ranks first, ties by row; see `Algorithm.ranks_by`."""
        if isinstance(self.algorithm, Factorized):
            queries = self.algorithm.query_factors(adapted)
            exclusion = (torch.tensor([0, excluded.numel()], device=self.device), excluded)
            _, rows = cosine_topk(queries, self._factors(side), k, excluded=exclusion, similarity="dot")
            return rows[0]
        partners = self.partners(side)
        mean = self.algorithm.predict(adapted, Query.full(1, partners, partners.rows)).mean
        return mean.index_fill(0, excluded, -math.inf).argsort(descending=True, stable=True)[:k]

    def _factors(self, side: Side) -> PreparedItems:
        if side not in self._prepared:
            factors = self.algorithm.candidate_factors(side, self.partners(side))  # type: ignore[attr-defined]
            self._prepared[side] = prepare_items(factors, similarity="dot")
        return self._prepared[side]

    @cached_property
    def _partners(self) -> dict[Side, EntityRows]:
        return {}

    @cached_property
    def _prepared(self) -> dict[Side, PreparedItems]:
        return {}

    def _features(self, side: Side, attributes: Mapping[str, Any]) -> Features:
        encoder = self.encoders.side(side)
        for name in attributes:
            if name not in encoder.encoders:
                raise DataError(unknown_name(f"{side} attribute", name, encoder.encoders))
        if not encoder.encoders:
            return Features.empty(1)
        listed = {
            name: [value]
            if encoder.encoders[name].takes_lists and not isinstance(value, list | None)
            else value
            for name, value in attributes.items()
        }
        return encoder.transform(pl.DataFrame({name: [listed.get(name)] for name in encoder.encoders}))
