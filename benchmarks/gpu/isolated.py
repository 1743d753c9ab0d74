"""Work in a process of its own, so that what crashes or poisons its CUDA context stops nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

T = TypeVar("T")


class Died(Exception):
    """A process ended before its work did; one line says how, and what it printed last."""


def isolated(work: Callable[..., Iterator[T]], *arguments: Any, patience: float = 300.0) -> Iterator[T]:
    """Give what `work` yields, one by one, in a process of its own.

    Parameters
    ----------
    work : callable
        A function of a module, with its arguments.
    patience : float
        How many seconds it may take from one to the next.

    Raises
    ------
    Died
        The process crashed, raised an error or took too long.
    """
    context = multiprocessing.get_context("spawn")  # a forked one would share this one's CUDA context
    receiver, sender = context.Pipe(duplex=False)
    with TemporaryDirectory() as folder, receiver:
        output = Path(folder) / "output"
        process = context.Process(target=_run, args=(sender, output, work, arguments), daemon=True)
        process.start()
        sender.close()
        try:
            while receiver.poll(patience):
                try:
                    item = receiver.recv()
                except EOFError:
                    break
                yield item
            else:
                raise Died(f"nothing for {patience:g} s")
            process.join()
            if process.exitcode:
                raise Died(_how(process.exitcode, output))
        finally:
            process.kill()
            process.join()


def _run(sender: Connection, output: Path, work: Callable[..., Iterator[Any]], arguments: Any) -> None:
    with output.open("wb") as file:
        for stream in (1, 2):  # kernels print their assertions to either
            os.dup2(file.fileno(), stream)
    with sender:
        for item in work(*arguments):
            sender.send(item)


def _how(code: int, output: Path) -> str:
    said = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{how}: {said[-1].strip()}" if said else how
