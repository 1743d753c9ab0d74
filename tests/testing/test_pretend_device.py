"""The pretended device computes as the CPU does, and refuses what a real one would."""

import pytest
import torch
from torch import nn

from metarec.testing.pretend_device import pretend_device


@pytest.fixture
def device():
    with pretend_device() as device:
        yield device


def test_trains_as_the_cpu_does(device):
    def trained(where):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(where)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        inputs = torch.randn(5, 3, generator=torch.Generator(where).manual_seed(1), device=where)
        for _ in range(3):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
        return list(network.parameters())

    for there, here in zip(trained(device), trained("cpu"), strict=True):
        assert there.device == device
        assert torch.equal(there.detach().cpu(), here.detach())


def test_changes_in_place_through_views_stay(device):
    table = torch.zeros(2, 2, device=device)
    table[0].add_(1)
    assert table.tolist() == [[1, 1], [0, 0]]


def test_shapes_that_change_in_place_do(device):
    table = torch.arange(6.0, device=device).view(1, 2, 3).squeeze_(0).t_()
    assert table.shape == (3, 2) and table.tolist() == [[0, 3], [1, 4], [2, 5]]
    found = torch.ones(2, device=device) @ torch.ones(2, 3, device=device)  # which squeezes in place
    assert found.shape == (3,) and found.held.shape == (3,)


@pytest.mark.parametrize("inference", [False, True])
def test_a_copy_shares_no_memory(device, inference):
    with torch.inference_mode(inference):
        here = torch.zeros(2)
        there = here.to(device)
        back = there.cpu()
        there.add_(1)
        assert here.tolist() == back.tolist() == [0, 0] and there.tolist() == [1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here[torch.zeros(1, dtype=torch.int64, device=there.device)],
        lambda there, here: there.index_select(0, torch.zeros(1, dtype=torch.int64)),
        lambda there, here: there.normal_(generator=torch.Generator()),
        lambda there, here: here.normal_(generator=torch.Generator(there.device)),
    ],
)
def test_refuses_two_devices(device, wrong):
    with pytest.raises(RuntimeError, match=r"expected all tensors on one device|expected a generator of"):
        wrong(torch.zeros(3, device=device), torch.zeros(3))


def test_takes_numbers_and_indices_of_the_cpu(device):
    there = torch.arange(3.0, device=device)
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]


def test_has_no_view_for_numpy(device):
    with pytest.raises(RuntimeError, match="numpy"):
        torch.zeros(1, device=device).numpy()
