"""What a sample of an op is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor


class Sample(ABC):
    """A call of an op, and an independent computation of what it must give.

    The fields of a sample, which is a dataclass, say what is called: sizes, types and options.
    """

    @property
    def waits(self) -> bool:
        """Whether the call waits for its device, as its documentation says: no CUDA graph can capture it then."""
        return False

    @abstractmethod
    def arguments(self) -> list[Tensor]:
        """Draw the arguments, on the CPU and the same each time."""

    @abstractmethod
    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        """Call the op on the device of the arguments, which stay as they are; give all results, by name.

        These are what it returns, what it has changed, and gradients.
        """

    @abstractmethod
    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        """Give the same for arguments on the CPU, in double precision and not by the op."""

    @abstractmethod
    def tolerance(self, name: str) -> float:
        """How far a result may be from what is expected, in units of its greatest value, or of 1 if that is less."""

    def check(self, results: Mapping[str, Tensor]) -> None:
        """Compare the results of a call with what is expected. Whole numbers must be equal.

        Raises
        ------
        AssertionError
            One differs: its name, and by how much.
        """
        for name, expected in self.expected(*self.arguments()).items():
            self.compare(name, results[name].cpu(), expected)

    def compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        """Compare one result; raise as `check` does."""
        found, tolerance = found.to(expected.dtype), 0.0
        if expected.is_floating_point():
            scale = expected.abs().amax().clamp_min(1) if expected.numel() else 1
            found, expected, tolerance = found / scale, expected / scale, self.tolerance(name)
        try:
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None

    def __str__(self) -> str:
        values = (f"{field.name}={getattr(self, field.name)}" for field in fields(self))  # type: ignore[arg-type]
        return " ".join(value.replace("torch.", "").replace(" ", "") for value in values)


def double(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Give copies, in double precision where they hold floating-point numbers."""
    return [tensor.to(torch.float64 if tensor.is_floating_point() else None, copy=True) for tensor in tensors]
