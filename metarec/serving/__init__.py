"""Layers 4 and 5: a fitted algorithm at work for newcomers."""

from metarec.serving.catalogue import Catalogue
from metarec.serving.newcomer import Newcomer, Reason, Recommendation
from metarec.serving.recommender import Recommender

__all__ = ["Catalogue", "Newcomer", "Reason", "Recommendation", "Recommender"]
