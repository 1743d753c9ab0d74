"""Support/query tasks and the protocols that make them."""

from metarec.tasks.protocol import SCENARIOS, Cell, Protocol, Split
from metarec.tasks.task import EntityRows, Query, Ragged, Support, Tasks

__all__ = ["SCENARIOS", "Cell", "EntityRows", "Protocol", "Query", "Ragged", "Split", "Support", "Tasks"]
