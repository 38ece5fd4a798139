"""Dynamic EMA: a moving average of parameters with a balance weight computed at every step."""

from lcia.ema.average import DynamicEMA
from lcia.ema.balance import Fixed, Paper, Release, Rule, Toolkit, build_rule
from lcia.ema.curvature import Curvature
from lcia.ema.decide import REASONS
from lcia.ema.horizon import Horizon
from lcia.ema.merge import PrecisionMerge
from lcia.ema.record import EMAStats

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
