"""Dynamic EMA: a moving average of parameters with a balance weight computed at every step."""

from lcia.ema.average import DynamicEMA
from lcia.ema.balance import Curvature, Fixed, Horizon, Paper, Release, Rule, Toolkit, build_rule
from lcia.ema.merge import PrecisionMerge
from lcia.ema.record import REASONS, EMAStats

__all__ = [
    "REASONS",
    "Curvature",
    "DynamicEMA",
    "EMAStats",
    "Fixed",
    "Horizon",
    "Paper",
    "PrecisionMerge",
    "Release",
    "Rule",
    "Toolkit",
    "build_rule",
]
