"""Newcomers among factors: a fit that is stopped. What they must compute is in metarec/testing/oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarec.learning import Descent, FactorHeadLearner, Run, Training
from metarec.plugins.algorithms.meta_cf import MetaCF
from metarec.plugins.algorithms.meta_content import MetaContent
from metarec.testing.world import small_world

SMALL = {"size": 4, "descent": Descent(rank=3, epochs=5)}


@pytest.mark.parametrize("learner", [MetaCF, MetaContent])
def test_stopped_and_resumed_it_ends_with_the_same_numbers(learner: type[FactorHeadLearner], tmp_path: Path):
    train, file = small_world().split.train, tmp_path / "checkpoint.safetensors"
    plan = {**SMALL, "training": Training(epochs=3, schedule="constant", warm_up=0, held_out=0)}
    whole = learner(**plan).fit(train)
    short = {**plan, "training": Training(epochs=1, schedule="constant", warm_up=0, held_out=0)}
    learner(**short).fit(train, run=Run(checkpoint=file))
    resumed = learner(**plan).fit(train, run=Run(checkpoint=file))
    for name, value in whole.state()["network_"].items():
        assert torch.equal(value, resumed.state()["network_"][name]), name
