"""On CUDA, which need not be there, each op gives the shapes, strides and types of the CPU: by fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten

from metarec.ops import (
    InnerHead,
    InnerSteps,
    cosine_scores,
    cosine_sgd_epoch_,
    cosine_topk,
    embedding_state,
    embedding_update_,
    gaussian_posterior,
    inner_loop,
    inner_loop_state,
)


def _rows(device):
    return torch.tensor([0, 2, 1, 0], device=device)


def _tables(device):
    return torch.ones(3, 5, device=device), torch.ones(4, 5, device=device)


def _offsets(device):
    return torch.tensor([0, 3, 4], device=device)


def _scores(device):
    return cosine_scores(*_tables(device), _rows(device), _rows(device))


def _topk(device):
    return cosine_topk(*_tables(device), 2)


def _epoch(device):
    users, items = _tables(device)
    biases = torch.zeros(3, device=device), torch.zeros(4, device=device)
    head, rating = torch.ones(2, device=device), torch.ones(4, device=device)
    return cosine_sgd_epoch_(users, items, *biases, head, _rows(device), _rows(device), rating, lr=0.1)


def _update(device):
    table, gradients = _tables(device)
    state = embedding_state(table, "adam")
    embedding_update_(table, _rows(device), gradients, rule="adam", state=state, lr=0.1)
    return table, *state.values()


def _posterior(device):
    features, numbers = torch.ones(4, 5, device=device), torch.ones(4, device=device)
    prior = torch.zeros(5, device=device), torch.eye(5, device=device)
    found = gaussian_posterior(features, numbers, numbers, _offsets(device), *prior)
    return [value for value in found if isinstance(value, torch.Tensor)]


def _head(device):
    sizes = ((6, 5), (1, 6))
    return InnerHead(
        [(torch.ones(*size, device=device), torch.ones(size[0], device=device)) for size in sizes]
    )


def _support(device):
    return torch.ones(4, 5, device=device), torch.ones(4, device=device), _offsets(device)


def _loop(device):
    query = torch.ones(4, 5, device=device), _offsets(device)
    return inner_loop(_head(device), InnerSteps(2, 0.1), *_support(device), *query)


def _state(device):
    found = inner_loop_state(_head(device), InnerSteps(2, 0.1), *_support(device))
    return [value for value in found if isinstance(value, torch.Tensor)]


CALLS = [_scores, _topk, _epoch, _update, _posterior, _loop, _state]


@pytest.mark.parametrize("call", CALLS)
def test_gives_on_cuda_what_it_gives_on_the_cpu(call):
    expected = tree_flatten(call("cpu"))[0]
    with FakeTensorMode():
        found = tree_flatten(call("cuda"))[0]
    assert len(found) == len(expected) > 0
    for fake, real in zip(found, expected, strict=True):
        assert fake.device.type == "cuda"
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_of_two_devices_is_refused():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"right must be .* on cuda:0, got .* on cpu"):
        cosine_scores(torch.ones(3, 5, device="cuda"), torch.ones(3, 5), _rows("cuda"), _rows("cuda"))
