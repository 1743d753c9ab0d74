"""Layer 3: what learns across tasks."""

from metarec.learning.abilities import Explainable, Explanation, Factorized, Updatable
from metarec.learning.algorithm import Adapted, Algorithm, Prediction
from metarec.learning.content_prior import ContentPrior, fit_content_prior
from metarec.learning.level import Level, LevelAlgorithm, residual_variance
from metarec.learning.run import Progress, Run, Silent

__all__ = [
    "Adapted",
    "Algorithm",
    "ContentPrior",
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
    "fit_content_prior",
    "residual_variance",
]
