"""Layer 3: what learns across tasks."""

from metarec.learning.abilities import (
    Diagnosed,
    Explainable,
    Explanation,
    Factorized,
    Generative,
    Updatable,
    leave_one_out,
)
from metarec.learning.algorithm import Adapted, Algorithm, Prediction
from metarec.learning.amortised import (
    AmortisedLearner,
    Latent,
    LatentLearner,
    LatentNetwork,
    TaskNetwork,
    Tokens,
    condition,
)
from metarec.learning.amortised_head import AmortisedHeadLearner, HeadReader, Told
from metarec.learning.biases import Baseline, Biases, fit_biases
from metarec.learning.content_prior import ContentPrior, fit_content_prior
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.factor_head import FactorHead, FactorHeadLearner, PlacedHead
from metarec.learning.factorisation import Descent, Factors, factorise
from metarec.learning.gradient import AdaptedHeads, GradientMetaLearner, Steps, Towers
from metarec.learning.level import Level, LevelAlgorithm, residual_variance
from metarec.learning.likelihood import Likelihood
from metarec.learning.linear_head import AdaptedHead, LinearHead, LinearHeadLearner
from metarec.learning.mode import ModeLearner
from metarec.learning.neural import NeuralAlgorithm, Perceptron, Sizes, silent
from metarec.learning.posterior import GaussianHead, Posterior, PosteriorLearner
from metarec.learning.run import Progress, Run, Silent
from metarec.learning.sampling import Draws, Sample, SamplingLearner
from metarec.learning.training import Trainer, Training, TrainingWarning
from metarec.learning.virtual import VirtualEntities

__all__ = [
    "Adapted",
    "AdaptedHead",
    "AdaptedHeads",
    "Algorithm",
    "AmortisedHeadLearner",
    "AmortisedLearner",
    "Baseline",
    "Biases",
    "ContentPrior",
    "Descent",
    "Diagnosed",
    "Draws",
    "EntityEmbedding",
    "Explainable",
    "Explanation",
    "FactorHead",
    "FactorHeadLearner",
    "Factorized",
    "Factors",
    "GaussianHead",
    "Generative",
    "GradientMetaLearner",
    "HeadReader",
    "Latent",
    "LatentLearner",
    "LatentNetwork",
    "Level",
    "LevelAlgorithm",
    "Likelihood",
    "LinearHead",
    "LinearHeadLearner",
    "ModeLearner",
    "NeuralAlgorithm",
    "Perceptron",
    "PlacedHead",
    "Posterior",
    "PosteriorLearner",
    "Prediction",
    "Progress",
    "Run",
    "Sample",
    "SamplingLearner",
    "Silent",
    "Sizes",
    "Steps",
    "TaskNetwork",
    "Tokens",
    "Told",
    "Towers",
    "Trainer",
    "Training",
    "TrainingWarning",
    "Updatable",
    "VirtualEntities",
    "condition",
    "factorise",
    "fit_biases",
    "fit_content_prior",
    "leave_one_out",
    "residual_variance",
    "silent",
]
