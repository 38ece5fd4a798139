"""Scores of answers, the accuracy matrix and the metrics of continual learning."""

from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import MEASURES, METRICS, Measure, Metric, summarise
from lcia.evaluation.scorers import Scorer, mean_percent, score_each

__all__ = [
    "MEASURES",
    "METRICS",
    "AccuracyMatrix",
    "Measure",
    "Metric",
    "Scorer",
    "mean_percent",
    "score_each",
    "summarise",
]
