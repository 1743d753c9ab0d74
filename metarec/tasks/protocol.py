"""The base of protocol plugins: from a data set and a seed to a training set and tasks by scenario."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from metarec.data import Dataset
from metarec.features import SideEncoders
from metarec.tasks.task import Tasks

SCENARIOS = ("warm", "new-user", "new-item", "new-both")


@dataclass(frozen=True)
class Cell:
    """The tasks of one scenario at one support size.

    Parameters
    ----------
    scenario : str
        Class of the query pairs: one of `SCENARIOS`.
    support : int or None
        Ratings in each support; None where it holds all there are.
    tasks : Tasks
    lists : tuple of "query", "catalogue"
        What ranking metrics rank: the query's partners only, or every candidate not in the support.
    """

    scenario: str
    support: int | None
    tasks: Tasks
    lists: tuple[str, ...] = ("query",)


@dataclass(frozen=True)
class Split:
    """What a protocol makes of a data set.

    Parameters
    ----------
    train : Dataset
        Known entities only, renumbered, with features: all that `fit` sees.
    encoders : SideEncoders
        The encoders of both sides, fitted on the training entities only.
    cells : sequence of Cell
    """

    train: Dataset
    encoders: SideEncoders
    cells: Sequence[Cell]

    def scenarios(self, names: Iterable[str]) -> Split:
        """Only the cells of these scenarios."""
        wanted = set(names)
        return Split(self.train, self.encoders, [cell for cell in self.cells if cell.scenario in wanted])


class Protocol(ABC):
    """Splits a data set. Options are keyword-only and typed.

    Attributes
    ----------
    name : str
        What users type after `--protocol`.
    """

    name: ClassVar[str]

    @abstractmethod
    def split(self, dataset: Dataset, *, seed: int) -> Split:
        """The training set and the tasks.

        Nothing of a query, and nothing of a new entity but its attributes, may reach `Split.train`.

        Raises
        ------
        DataError
            The data set lacks what the protocol needs; one line says what.
        """
