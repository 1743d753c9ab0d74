"""Where to compute: whether a device can be used here, and what is drawn there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metarec.build import build_info
from metarec.errors import ConfigError, unknown_name


def usable_device(device: torch.device | str) -> torch.device:
    """The device of this name, if it can be used here.

    Raises
    ------
    ConfigError
        There is no such device, torch or metarec is built without it, or there is none on this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(unknown_name("device", str(device), ("cpu", "cuda", "mps", "xpu"))) from None
    if found.type == "cuda":
        _check_cuda(str(device))
    try:
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().split("\n")[0]
        raise ConfigError(f"device {str(device)!r} cannot be used here: {why}") from None
    return found


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seed the default generators of the CPU and of `devices` within a ``with``; then they are as they were before.

    Those of other devices are left alone, not even asked for their state, which takes long where there are many.
    """
    others = [device for device in devices if device.type != "cpu"]
    with torch.random.fork_rng(others, device_type=others[0].type if others else "cpu"):
        torch.default_generator.manual_seed(seed)
        for device in others:
            state = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(state, device)
        yield


def _check_cuda(name: str) -> None:
    if torch.version.cuda is None:
        raise ConfigError(
            f"device {name!r} cannot be used here: this torch ({torch.__version__}) has no CUDA, "
            "expected a build that has"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} cannot be used here: torch {torch.__version__} finds no GPU, expected one"
        )
    build = build_info()
    if build["native"] and not build["cuda"]:
        raise ConfigError(
            f"device {name!r} cannot be used here: metarec's native ops are built without CUDA, "
            "expected with it: install metarec again with METAREC_CUDA=1 and nvcc"
        )
