"""Support/query tasks and the protocols that make them."""

from metarec.tasks.building import Partition, SupportSize, draw_queries, random_places, support_curve
from metarec.tasks.mixing import mix
from metarec.tasks.protocol import SCENARIOS, Cell, Protocol, Split
from metarec.tasks.sampling import Sampling, TaskSampler
from metarec.tasks.task import EntityRows, Query, Ragged, Support, Tasks

__all__ = [
    "SCENARIOS",
    "Cell",
    "EntityRows",
    "Partition",
    "Protocol",
    "Query",
    "Ragged",
    "Sampling",
    "Split",
    "Support",
    "SupportSize",
    "TaskSampler",
    "Tasks",
    "draw_queries",
    "mix",
    "random_places",
    "support_curve",
]
