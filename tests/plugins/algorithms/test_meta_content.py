"""The contract, for `meta-content`; what its family computes is held in tests/learning/test_factor_head.py."""

from collections.abc import Mapping
from typing import Any, ClassVar

from metarec.learning import Descent, Training
from metarec.plugins.algorithms.meta_content import MetaContent
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = MetaContent
    options: ClassVar[Mapping[str, Any]] = {
        "size": 4,
        "descent": Descent(rank=3, epochs=5),
        "training": Training(epochs=2),
    }
