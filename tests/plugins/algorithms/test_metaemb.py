"""The contract, for `metaemb`; what its family computes is held in metarec/testing/oracles."""

from collections.abc import Mapping
from typing import Any, ClassVar

from metarec.learning import Descent, Training
from metarec.plugins.algorithms.metaemb import MetaEmb
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = MetaEmb
    options: ClassVar[Mapping[str, Any]] = {
        "size": 4,
        "descent": Descent(rank=3, epochs=5),
        "training": Training(epochs=2),
    }
