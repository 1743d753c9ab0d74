"""A plugin as a third party would put it in a file: the small world as a data set, and a command."""

from metarec import hookimpl
from metarec.data import Reader
from metarec.testing import small_world


class Small(Reader):
    """The small world."""

    name = "small"

    def __init__(self, *, path: str = "", implicit: bool = False) -> None:
        self.path = path
        self.implicit = implicit

    def read(self):
        return small_world(implicit=self.implicit).dataset


@hookimpl
def register_datasets(register):
    register(Small)


@hookimpl
def register_commands(register):
    def greet(name: str = "you") -> None:
        """Say hello."""
        print(f"hello {name}")

    register(greet)
