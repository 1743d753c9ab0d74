"""Layer 3: what learns across tasks."""

from metarec.learning.abilities import Explainable, Explanation, Factorized, Updatable
from metarec.learning.algorithm import Adapted, Algorithm, Prediction
from metarec.learning.level import Level, LevelAlgorithm, residual_variance
from metarec.learning.run import Progress, Run, Silent

__all__ = [
    "Adapted",
    "Algorithm",
    "Explainable",
    "Explanation",
    "Factorized",
    "Level",
    "LevelAlgorithm",
    "Prediction",
    "Progress",
    "Run",
    "Silent",
    "Updatable",
    "residual_variance",
]
