"""Drawing from torch's default generators leaves no trace, and leaves other devices alone."""

import pytest
import torch

from metarec.device import seeded
from metarec.learning import Run
from metarec.testing.pretend_device import pretend_device


def test_draws_depend_on_the_seed_alone_and_leave_the_generator_as_it_was():
    def drawn(seed):
        with seeded(seed):
            return torch.randn(3)

    before = torch.get_rng_state()
    first = drawn(5)
    torch.randn(7)
    assert torch.equal(drawn(5), first) and not torch.equal(drawn(6), first)
    torch.set_rng_state(before)
    expected = torch.randn(3)
    torch.set_rng_state(before)
    drawn(5)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("used", [True, False])
def test_only_the_device_in_use_is_asked_for_its_state(monkeypatch, used):
    kept = []
    with pretend_device() as device:
        backend, here = torch.get_device_module(device), torch.zeros(1, dtype=torch.uint8)
        monkeypatch.setattr(backend, "device_count", lambda: pytest.fail("all devices are asked"))
        monkeypatch.setattr(backend, "get_rng_state", lambda where: kept.append(("get", where)) or here)
        monkeypatch.setattr(
            backend, "set_rng_state", lambda state, where: kept.append((state is here, where))
        )
        with seeded(1, *([device] if used else [])):
            pass
    assert kept == ([("get", device), (False, device), (True, device)] if used else [])


def test_what_a_run_draws_does_not_depend_on_its_device():
    with pretend_device() as device:
        there = torch.rand(3, generator=Run(device=device, seed=4).generator())
    assert torch.equal(there, torch.rand(3, generator=Run(seed=4).generator()))
