"""On CUDA, which need not be there, each op gives the shapes, strides and types of the CPU: by fake tensors."""

from collections import defaultdict

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from metarec.ops import (
    InnerHead,
    InnerSteps,
    cosine_scores,
    cosine_sgd_epoch_,
    cosine_topk,
    embedding_state,
    embedding_update_,
    gaussian_posterior,
    gaussian_update,
    inner_loop,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
    prepare_items,
)

OPS = sorted(
    name.removeprefix("metarec::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("metarec::")
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


def _topk_of_prepared(device):
    queries, items = _tables(device)
    prepared = prepare_items(items)
    return *cosine_topk(queries, prepared, 2), prepared.norms, prepared.codes, prepared.code_bounds


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
    return gaussian_posterior(features, numbers, numbers, _offsets(device), *prior)


def _one_more(device):
    factors = torch.eye(5, device=device).repeat(3, 1, 1)
    number = torch.ones(3, device=device)
    return gaussian_update(torch.zeros(3, 5, device=device), factors, _tables(device)[0], number, number)


def _head(device):
    sizes = ((6, 5), (1, 6))
    return InnerHead(
        [(torch.ones(*size, device=device), torch.ones(size[0], device=device)) for size in sizes]
    )


def _support(device):
    return torch.ones(4, 5, device=device), torch.ones(4, device=device), _offsets(device)


def _query(device):
    return torch.ones(3, 5, device=device), torch.tensor([0, 1, 3], device=device)


def _loop(device):
    return inner_loop(_head(device), InnerSteps(2, 0.1), *_support(device), *_query(device))


def _state(device):
    head = _head(device)
    found = inner_loop_state(head, InnerSteps(2, 0.1), *_support(device))
    return *found, inner_loop_predict(head, found, _offsets(device), *_query(device))


CALLS = [_scores, _topk, _topk_of_prepared, _epoch, _update, _posterior, _one_more, _loop, _state]


def _gradients():
    """Take all gradients, on the CPU: without a GPU autograd knows no CUDA."""
    leaf = torch.ones(4, 5, requires_grad=True)
    for sparse in (False, True):
        cosine_scores(leaf, leaf, _rows("cpu"), _rows("cpu"), sparse_grad=sparse).sum().backward()
        leaf.grad = None
    ones, prior = torch.ones(4), (torch.zeros(5), torch.eye(5))
    gaussian_posterior(leaf, ones, ones, _offsets("cpu"), *prior).mean.sum().backward()
    inner_loop(_head("cpu"), InnerSteps(2, 0.1), leaf, ones, _offsets("cpu"), *_query("cpu")).sum().backward()


def _effects():
    """As many as the offsets say, which fake tensors cannot."""
    inner_loop_effects(_head("cpu"), InnerSteps(2, 0.1), *_support("cpu"), *_query("cpu"))


class _Recorder(TorchDispatchMode):
    """Keeps what each of our ops is called with and what it gives."""

    def __init__(self):
        super().__init__()
        self.calls = defaultdict(list)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        results = op(*args, **(kwargs or {}))
        if op.namespace == "metarec":
            self.calls[op.__name__.removesuffix(".default")].append((args, results))
        return results


@pytest.fixture(scope="module")
def calls():
    with _Recorder() as recorder:
        for call in CALLS:
            call("cpu")
        _gradients()
        _effects()
    return recorder.calls


def _assert_like_on_cuda(found, expected):
    found, expected = tree_flatten(found)[0], tree_flatten(expected)[0]
    assert len(found) == len(expected)
    for fake, real in zip(found, expected, strict=True):
        if real is None:
            assert fake is None
            continue
        sizes = [
            own if isinstance(size, torch.SymInt) else size  # one that hangs on values
            for size, own in zip(fake.shape, real.shape, strict=True)
        ]
        assert fake.device.type == "cuda"
        assert (sizes, fake.dtype) == (list(real.shape), real.dtype)
        if real.numel():
            assert _strides_that_matter(fake, real) == _strides_that_matter(real, real)


def _strides_that_matter(tensor, like):
    return [stride for stride, size in zip(tensor.stride(), like.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_on_cuda_what_it_gives_on_the_cpu(name, calls):
    assert calls[name], f"no call here needs {name}"
    for arguments, results in calls[name]:
        with FakeTensorMode(shape_env=ShapeEnv()):
            there = tree_map_only(
                torch.Tensor,
                lambda value: torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device="cuda"
                ),
                arguments,
            )
            found = getattr(torch.ops.metarec, name)(*there)
        _assert_like_on_cuda(found, results)


@pytest.mark.parametrize("call", CALLS)
def test_a_function_gives_on_cuda_what_it_gives_on_the_cpu(call):
    expected = call("cpu")
    with FakeTensorMode():
        found = call("cuda")
    _assert_like_on_cuda(found, expected)


def test_of_two_devices_is_refused():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"right must be .* on cuda:0, got .* on cpu"):
        cosine_scores(torch.ones(3, 5, device="cuda"), torch.ones(3, 5), _rows("cuda"), _rows("cuda"))
