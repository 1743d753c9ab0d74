"""The base of data-set plugins."""

from abc import ABC, abstractmethod
from typing import ClassVar

from metarec.data.dataset import Dataset


class Reader(ABC):
    """Reads a data set. Options are keyword-only and typed; ``path``, where there is one, is what `--data` gives.

    Attributes
    ----------
    name : str
        What users type after `--dataset`.
    """

    name: ClassVar[str]

    @abstractmethod
    def read(self) -> Dataset:
        """Read, check and return it.

        Raises
        ------
        DataError
            One line naming the file, the row or column, what was found and what was expected.
        """
