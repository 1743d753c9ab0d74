"""Tasks between tasks against their definition, rating by rating."""

from __future__ import annotations

import pytest
import torch

from metarec.tasks import Sampling, Tasks, TaskSampler, mix
from metarec.testing.world import small_world


def drawn(*, implicit: bool = False, **options) -> Tasks:
    train = small_world(implicit=implicit).split.train
    sampling = Sampling(tasks=48, max_support=4, **options)
    sampler = TaskSampler(train, ("user",), sampling, device=torch.device("cpu"), dtype=torch.float64)
    (tasks,) = sampler.epoch(torch.Generator().manual_seed(0))
    return tasks


def entries(tasks: Tasks, part: str, task: int) -> list[tuple[torch.Tensor, float, bool]]:
    """Attributes of the partner, rating, and whether the partner is known, of each rating of a task."""
    lists, ratings = getattr(tasks, part), tasks.support.rating if part == "support" else tasks.rating
    begin, end = lists.offsets[task : task + 2].tolist()
    features, rows = lists.partners.features.dense(), lists.partners.rows
    return [
        (features[p], float(r), bool(rows[p] >= 0))
        for p, r in zip(lists.partner[begin:end].tolist(), ratings[begin:end].tolist(), strict=True)
    ]


@pytest.mark.parametrize("implicit", [False, True])
def test_each_task_is_moved_towards_another(implicit: bool):
    tasks = drawn(implicit=implicit)
    generator = torch.Generator().manual_seed(1)
    other = torch.randperm(len(tasks), generator=generator)
    other[::3] = torch.arange(len(tasks))[::3]
    share = torch.rand(len(tasks), generator=generator, dtype=torch.float64)
    mixed = mix(tasks, other, share)
    before, after = (t.support.entities.features.dense() for t in (tasks, mixed))
    expected = share[:, None] * before + (1 - share)[:, None] * before[other]
    assert torch.allclose(after, expected, rtol=1e-12)
    assert (mixed.support.entities.rows == -1).all()
    for part in ("support", "query"):
        for task, its in enumerate(other.tolist()):
            found, one, two = (
                entries(mixed, part, task),
                entries(tasks, part, task),
                entries(tasks, part, its),
            )
            assert len(found) == min(len(one), len(two))
            for (p, r, known), (p1, r1, known1), (p2, r2, _) in zip(found, one, two, strict=False):
                if task == its:
                    assert torch.equal(p, p1) and r == r1 and known == known1
                else:
                    weight = float(share[task])
                    assert torch.allclose(p, weight * p1 + (1 - weight) * p2, rtol=1e-12)
                    assert r == pytest.approx(weight * r1 + (1 - weight) * r2, rel=1e-12)
                    assert not known
                    assert not implicit or r in (0, 1), "what was chosen is paired with what was chosen"


def test_the_sampler_mixes_the_share_asked_for_and_by_the_arcsine_law():
    assert len(drawn().query.partners) == len(drawn(mixed=1e-12).query.partners) == 64
    mixed = drawn(mixed=1.0)
    whole = drawn()
    same = (mixed.support.entities.features.dense() == whole.support.entities.features.dense()).all(1)
    assert same.sum() <= 3 and len(mixed.query.partners) > 64
    some = drawn(mixed=0.5).support.entities.features.dense()
    changed = (some != whole.support.entities.features.dense()).any(1)
    assert 0.3 < changed.double().mean() < 0.7
