"""A small data set drawn from a known law, split into known and new entities, with tasks on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import polars as pl
import torch
from torch import Tensor

from metarec.data import Dataset, Entities, Features, RatingScale, Side, partner_side
from metarec.features import encode, fit_encoders
from metarec.tasks import Cell, EntityRows, Query, Split, Support, Tasks

USERS, ITEMS = 60, 40
KNOWN: dict[Side, int] = {"user": 48, "item": 32}


@dataclass(frozen=True)
class SmallWorld:
    """A data set and its split.

    Parameters
    ----------
    dataset : Dataset
        All entities and interactions.
    split : Split
        The first 48 users and 32 items are known. One cell per scenario; ``new-item`` has item tasks. Supports hold
        0 to 7 ratings, with known partners.
    """

    dataset: Dataset
    split: Split

    def tasks(self, scenario: str) -> Tasks:
        """The tasks of a scenario."""
        return next(cell.tasks for cell in self.split.cells if cell.scenario == scenario)


@cache
def small_world(*, implicit: bool = False, seed: int = 0) -> SmallWorld:
    """Draw a world of 60 users and 40 items.

    Ratings are ``clip(round(3 + attribute effects + u·v + noise), 1, 5)`` with u, v ~ N(0, ½ I₂); where `implicit`
    holds, pairs with a rating of 4 or more are the interactions.
    """
    dataset = _draw(implicit, torch.Generator().manual_seed(seed))
    train = dataset.restrict(torch.arange(KNOWN["user"]), torch.arange(KNOWN["item"]))
    encoders = fit_encoders(train)
    encoded = encode(dataset, encoders)
    known_users, new_users = slice(0, KNOWN["user"]), slice(KNOWN["user"], USERS)
    known_items, new_items = slice(0, KNOWN["item"]), slice(KNOWN["item"], ITEMS)
    cells = [
        Cell("warm", None, _tasks(encoded, "user", entities=known_users, query=known_items)),
        Cell("new-user", None, _tasks(encoded, "user", entities=new_users, query=known_items)),
        Cell("new-item", None, _tasks(encoded, "item", entities=new_items, query=known_users)),
        Cell("new-both", None, _tasks(encoded, "user", entities=new_users, query=new_items)),
    ]
    return SmallWorld(dataset, Split(encode(train, encoders), encoders, cells))


def _draw(implicit: bool, generator: torch.Generator) -> Dataset:
    group, kind = torch.arange(USERS) % 3, torch.arange(ITEMS) % 4
    age = torch.randint(18, 80, (USERS,), generator=generator)
    taste, trait = torch.randn(USERS, 2, generator=generator), torch.randn(ITEMS, 2, generator=generator)
    effect = torch.randn(3, 4, generator=generator)[group][:, kind]
    noise = torch.randn(USERS, ITEMS, generator=generator)
    rating = (3 + 0.7 * effect + 0.5 * taste @ trait.T + 0.5 * noise).round().clamp(1, 5)
    seen = rating >= 4 if implicit else torch.rand(USERS, ITEMS, generator=generator) < 0.7
    user, item = seen.nonzero(as_tuple=True)
    users = pl.DataFrame({"group": [f"g{g}" for g in group.tolist()], "age": age.tolist()})
    items = pl.DataFrame(
        {"title": [f"Item {i}" for i in range(ITEMS)], "kind": [f"k{k}" for k in kind.tolist()]}
    )
    return Dataset(
        name="small-world",
        users=Entities(pl.Series("user", range(1000, 1000 + USERS)), users),
        items=Entities(pl.Series("item", [f"i{i}" for i in range(ITEMS)]), items, display="title"),
        user=user.int(),
        item=item.int(),
        rating=torch.ones(len(user)) if implicit else rating[seen],
        scale=RatingScale.for_implicit() if implicit else RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0),
    )


def _tasks(dataset: Dataset, side: Side, *, entities: slice, query: slice) -> Tasks:
    """Tasks of the entities in a range of rows, with 0 to 7 ratings by known partners and the rest in `query`."""
    table, partners = dataset.entities(side), dataset.entities(partner_side(side))
    chosen = torch.arange(len(table))[entities]
    rows = torch.arange(len(partners))
    asked = torch.zeros(len(partners), dtype=torch.bool).index_fill(0, rows[query], True)
    adapted_on: list[Tensor] = []
    predicted: list[Tensor] = []
    for task, entity in enumerate(chosen.tolist()):
        mine = (dataset.rows(side) == entity).nonzero().squeeze(1)
        partner = dataset.rows(partner_side(side))[mine].long()
        adapted_on.append(mine[partner < KNOWN[partner_side(side)]][: task % 8])
        predicted.append(mine[asked[partner] & ~torch.isin(mine, adapted_on[-1])])
    partner_of = dataset.rows(partner_side(side)).long()
    known_partners = EntityRows(_known_rows(rows, partner_side(side)), _features(partners))
    return Tasks(
        support=Support(
            side=side,
            entities=EntityRows(_known_rows(chosen, side), _features(table).rows(chosen)),
            partners=known_partners,
            offsets=_offsets(adapted_on),
            partner=partner_of[torch.cat(adapted_on)],
            rating=dataset.rating[torch.cat(adapted_on)],
        ),
        query=Query(_offsets(predicted), partner_of[torch.cat(predicted)], known_partners),
        rating=dataset.rating[torch.cat(predicted)],
        entity=chosen,
        candidates=rows[query],
    )


def _known_rows(rows: Tensor, side: Side) -> Tensor:
    return torch.where(rows < KNOWN[side], rows, -1)


def _features(entities: Entities) -> Features:
    assert entities.features is not None
    return entities.features


def _offsets(lists: list[Tensor]) -> Tensor:
    return torch.tensor([0, *(part.numel() for part in lists)]).cumsum(0)
