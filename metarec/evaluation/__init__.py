"""What turns predictions into a report: metrics, the evaluator, significance, reporters."""

from metarec.evaluation.evaluator import CellScores, Evaluation, Score, evaluate
from metarec.evaluation.metric import (
    CalibrationMetric,
    CatalogueMetric,
    Metric,
    RankingMetric,
    RatingMetric,
    create_metrics,
)
from metarec.evaluation.ranking import log_binomial
from metarec.evaluation.report import Report, Reporter, Row, compare, mean_over_seeds
from metarec.evaluation.scored import Catalogue, Scored, TieGroups
from metarec.evaluation.summary import Headline, Verdict, headlines, print_summary, verdicts

__all__ = [
    "CalibrationMetric",
    "Catalogue",
    "CatalogueMetric",
    "CellScores",
    "Evaluation",
    "Headline",
    "Metric",
    "RankingMetric",
    "RatingMetric",
    "Report",
    "Reporter",
    "Row",
    "Score",
    "Scored",
    "TieGroups",
    "Verdict",
    "compare",
    "create_metrics",
    "evaluate",
    "headlines",
    "log_binomial",
    "mean_over_seeds",
    "print_summary",
    "verdicts",
]
