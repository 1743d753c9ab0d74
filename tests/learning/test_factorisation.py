"""Factors of choices: what the odds of a pair come to where users and items do not matter to each other."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from metarec.data import Dataset, Entities, RatingScale
from metarec.learning import Descent, Run, factorise


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_bias_is_the_log_of_how_often_an_entity_is_in_a_choice(side):
    """With k pairs drawn for each of n choices, the odds of (u, i) are ``p_u p_i U I / k``."""
    generator = torch.Generator().manual_seed(0)
    users, items = ((0.02 + torch.rand(count, generator=generator)).square() for count in (300, 200))
    chosen = (users.unsqueeze(1) * items > torch.rand(300, 200, generator=generator)).nonzero()
    train = Dataset(
        "choices",
        Entities(pl.Series("user", range(300)), pl.DataFrame(height=300)),
        Entities(pl.Series("item", range(200)), pl.DataFrame(height=200)),
        *chosen.int().unbind(1),
        torch.ones(len(chosen)),
        RatingScale.for_implicit(),
    )
    plan = Descent(rank=1, epochs=60, learning_rate=0.05, l2=0.01, patience=60)
    found = factorise(train, plan, "dot", run=Run(dtype=torch.float64))
    count = torch.bincount(train.rows(side))
    often = count >= 10
    expected = count[often].double().log()
    bias = found.of(side)[often, 0]
    assert expected.std() > 0.4
    assert torch.corrcoef(torch.stack([bias, expected]))[0, 1] > 0.97
    assert bias.std() / expected.std() == pytest.approx(1, abs=0.2)
