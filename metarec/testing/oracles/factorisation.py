"""Where descent ends, and all that a training set says, for learners that fold entities in among known factors."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.data import SIDES, Dataset, Features, Side, partner_side
from metarec.learning import Descent
from metarec.learning.factorisation import standardisation
from metarec.ops import cosine_sgd_epoch_
from metarec.tasks import EntityRows, Ragged, Support

EPOCHS = 3000


def descended(train: Dataset, descent: Descent) -> dict[Side, Tensor]:
    """Biases and factors, float64 [N, 1 + rank], at a minimum: after many epochs at a slowly falling rate."""
    mean, deviation = standardisation(train)
    rating = (train.rating.double() - mean) / deviation
    generator = torch.Generator().manual_seed(0)
    users, items = (
        0.3 * torch.randn(len(train.entities(side)), descent.rank, generator=generator, dtype=torch.float64)
        for side in SIDES
    )
    of_user, of_item = users.new_zeros(len(users)), items.new_zeros(len(items))
    head = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for epoch in range(EPOCHS):
        cosine_sgd_epoch_(
            users,
            items,
            of_user,
            of_item,
            head,
            train.user,
            train.item,
            rating,
            lr=0.05 / (1 + epoch / 50),
            l2=descent.l2,
            similarity="dot",
            seed=epoch,
            head_lr=0,
        )
    return {"user": torch.cat([of_user[:, None], users], 1), "item": torch.cat([of_item[:, None], items], 1)}


def everything(train: Dataset, side: Side) -> Support:
    """All training ratings, in float64, as the supports of all entities of a side."""
    lists = Ragged.grouped(train.rows(side).long(), len(train.entities(side)))
    tables = {s: EntityRows(torch.arange(len(train.entities(s))), _features(train, s)) for s in SIDES}
    return Support(
        offsets=lists.offsets,
        partner=train.rows(partner_side(side)).long()[lists.partner],
        side=side,
        entities=tables[side],
        partners=tables[partner_side(side)],
        rating=train.rating[lists.partner].double(),
    )


def _features(train: Dataset, side: Side) -> Features:
    features = train.entities(side).features
    assert features is not None, "a split encodes both sides"
    return features
