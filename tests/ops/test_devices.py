"""Samples of the ops on a device that is not the CPU: what is Python of a call stays there, and waits for nothing."""

import importlib
import pkgutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import metarec.ops
from metarec.ops import InnerHead, InnerSteps, inner_loop
from metarec.testing.ops import OPS
from metarec.testing.pretend_device import pretend_device


class NoWaiting(TorchDispatchMode):
    """Refuses what must wait for a device: copies from one to another, and numbers for Python."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op._schema.name == "aten::_local_scalar_dense" and args[0].device.type != "cpu":
            raise RuntimeError("waits for a number")
        result = op(*args, **(kwargs or {}))
        if op._schema.name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if op._schema.name == "aten::copy_" else args[0]
            if source.device != result.device:
                raise RuntimeError("waits for a copy")
        return result


def test_every_op_has_samples():
    modules = {module.name for module in pkgutil.iter_modules(metarec.ops.__path__)}
    assert set(OPS) == modules - {"features", "library", "reference"}


def first_of_each_kind(op):
    """One sample per class and options; the pretended device has no sparse tensors."""
    found = {}
    for sample in importlib.import_module(f"metarec.testing.ops.{op}").samples():
        if all(tensor.numel() for tensor in sample.arguments()) and not getattr(sample, "sparse_grad", False):
            found.setdefault((type(sample), str(getattr(sample, "options", ""))), sample)
    return list(found.values())


@pytest.mark.parametrize("sample", [sample for op in OPS for sample in first_of_each_kind(op)], ids=str)
def test_gives_on_another_device_what_it_gives_on_the_cpu(sample):
    expected = sample.call(*sample.arguments())
    with pretend_device() as device:
        arguments = [tensor.to(device) for tensor in sample.arguments()]
        if sample.waits:
            found = sample.call(*arguments)
        else:
            with NoWaiting():
                found = sample.call(*arguments)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.device == device, name
            torch.testing.assert_close(value.cpu(), expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rates", [0.1, "tensor"])
def test_waiting_is_refused(rates):
    with pretend_device() as device, NoWaiting():
        layer = torch.ones(1, 2, device=device), torch.zeros(1, device=device)
        rows, targets = torch.ones(3, 2, device=device), torch.ones(3, device=device)
        offsets = torch.arange(0, 4, 3, device=device)
        tasks = rows, targets, offsets, rows, offsets
        if rates == "tensor":  # of the CPU, which the device must copy
            with pytest.raises(RuntimeError, match="waits for a copy"):
                inner_loop(InnerHead([layer]), InnerSteps(2, torch.tensor(0.1)), *tasks)
        else:
            inner_loop(InnerHead([layer]), InnerSteps(2, rates), *tasks)
            with pytest.raises(RuntimeError, match="waits for a number"):
                targets.sum().item()
