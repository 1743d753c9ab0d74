"""A device that is not the CPU, on a machine that has no other: for finding tensors that are made on the wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_NAME = "pretend"
_MOVES = ("copy_", "_to_copy", "to")
_TAKE_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_TAKE_NO_NUMBERS = ("cat", "stack")


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Give a device whose tensors are told apart from the CPU's, within a ``with``; the CPU computes with them.

    What a real device refuses is refused: an operation on tensors of two devices, unless one of them is a CPU tensor
    without dimensions or an index; drawing on a device with a generator of another; and NumPy's view of a tensor. The
    numbers are those of the CPU, bit for bit, so that a fit on both can be compared.

    Raises
    ------
    RuntimeError
        Inside, from torch: an operation on tensors of two devices, or with a generator of another device.
    """
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor(…, device=…)` would pass the mode by
    try:
        with (
            _Mode(),  # type: ignore[no-untyped-call]
            patch.object(torch, "Generator", _Generator),
            patch.object(_Backend, "is_available", staticmethod(lambda: True)),
            patch.object(torch.accelerator, "synchronize", lambda *_: None),
        ):
            yield _DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


class _Pretended(Tensor):
    """A tensor of the device, whose values are those of a tensor of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> _Pretended:
        with torch.inference_mode(
            values.is_inference()
        ):  # a view of a tensor from outside is none of inference mode
            self: _Pretended = Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=_DEVICE,
            )
        self.held = values
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()  # which torch refuses of a subclass

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} on {_DEVICE}"


class _Generator(torch._C.Generator):
    """A generator of the device; asked for one of another, it gives that."""

    _alive: ClassVar[WeakSet[_Generator]] = WeakSet()

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        if torch.device(device).type != _NAME:
            return torch._C.Generator(torch.device(device))
        self = super().__new__(cls)
        cls._alive.add(self)
        return self

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    @classmethod
    def includes(cls, generator: torch._C.Generator) -> bool:
        """Whether an operation was given a generator of the device: as another object, which torch makes."""
        return generator._cdata in {own._cdata for own in cls._alive}  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return _DEVICE


class _Backend:
    """What torch asks a device for."""

    is_available = staticmethod(lambda: False)  # but inside `pretend_device`
    is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = set_rng_state = staticmethod(lambda *_: None)  # what draws is the CPU's generator
    get_rng_state = staticmethod(lambda *_: None)


class _Mode(TorchDispatchMode):
    """Runs what makes tensors, which has no argument to know the device by."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given, form = pytree.tree_flatten((args, kwargs))
    asked = [value for value in given if isinstance(value, torch.device)]
    pretended = [value for value in given if isinstance(value, _Pretended)]
    there = asked[0].type == _NAME if asked else bool(pretended)
    _check_tensors(op, args, given)
    _check_generator(op, given, there)
    plain = [_on_cpu(value) for value in given]
    # What an operation changes in place it gives back: the same object, or autograd would lose it.
    same = {id(tensor.held): tensor for tensor in pretended} if there else {}

    def placed(result: Tensor) -> Tensor:
        if id(result) in same:
            return same[id(result)]
        if asked and any(result is value for value in plain):
            result = result.clone()  # a copy on another device shares no memory
        return _Pretended(result) if there else result

    on_cpu, with_these = pytree.tree_unflatten(plain, form)
    results = op(*on_cpu, **with_these)
    if there and torch.Tag.inplace_view in op.tags:
        with no_dispatch():
            op(*args, **kwargs)  # what changes shape in place does so for both
    return placed(results) if isinstance(results, Tensor) else pytree.tree_map_only(Tensor, placed, results)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, _Pretended):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _check_tensors(op: Any, args: Any, given: list[Any]) -> None:
    name = op._schema.name.removeprefix("aten::")
    if name in _MOVES:
        return
    if name in _TAKE_INDICES and isinstance(args[0], _Pretended):
        given = [args[0], *args[2:]]  # the indices may be on the CPU
    tensors = [value for value in given if isinstance(value, Tensor)]
    bound = {
        isinstance(tensor, _Pretended)
        for tensor in tensors
        if tensor.dim() or isinstance(tensor, _Pretended) or name in _TAKE_NO_NUMBERS
    }
    if len(bound) > 1:
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{name}: expected all tensors on one device, found {found}")


def _check_generator(op: Any, given: list[Any], there: bool) -> None:
    for value in given:
        if isinstance(value, torch._C.Generator) and _Generator.includes(value) != there:
            drawn, by = (_DEVICE, "cpu") if there else ("cpu", _DEVICE)
            raise RuntimeError(f"{op._schema.name}: expected a generator of {drawn}, found one of {by}")


# Not when the device is first used: autograd counts the devices of a process once, at its first backward pass.
_setup_privateuseone_for_python_backend(_NAME, _Backend())
_DEVICE = torch.device(_NAME, 0)
