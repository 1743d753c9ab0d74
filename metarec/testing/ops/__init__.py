"""Calls of the native ops with what they must give, on whatever device: tests hold the CPU to them, and GPUs are too.

A module has the samples of the op of its name, by a function ``samples``.
"""

import pkgutil

from metarec.testing.ops.sample import Sample

OPS = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "sample")
"""The ops that have samples."""

__all__ = ["OPS", "Sample"]
