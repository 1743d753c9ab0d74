"""Loads the native kernels and joins each op with its reference, fake and gradient."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "metarec"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _load() -> bool:
    if os.environ.get("METAREC_CPP") == "0":
        return False
    binaries = sorted(Path(__file__).parents[1].glob("_C*.so"))
    for binary in binaries:
        torch.ops.load_library(binary)
    if not binaries:
        warnings.warn(
            "metarec has no native kernels (none were built): its reference ops in torch are slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return bool(binaries)


NATIVE = _load()
"""Whether the native kernels are there; without them every op runs its reference."""


def register(
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    mutates: tuple[str, ...] = (),
) -> Any:
    """Complete the op that has the name of ``reference`` and give it back, ready to be called.

    The schema is the one of ``csrc/ops``; without a native build it is inferred from the annotations of the
    reference and the names of the arguments that it ``mutates``. A device without a kernel of its own runs the
    reference. Of the op's arguments, ``fake`` takes those that it names.
    """
    name = reference.__name__
    qualified = f"{NAMESPACE}::{name}"
    if not NATIVE:
        _library.define(name + torch.library.infer_schema(reference, mutates_args=mutates))

    def kernel(*args: Any) -> Any:
        results = reference(*args)
        if results is None or isinstance(results, Tensor):
            return None if results is None else results.contiguous()
        return tuple(result.contiguous() for result in results)

    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _for_arguments_of(reference, fake), lib=_library)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _for_arguments_of(reference: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that takes some of the arguments of the reference be given them all."""
    signature, needed = inspect.signature(reference), inspect.signature(function).parameters

    def call(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named).arguments
        return function(*(given[name] for name in needed))

    return call
