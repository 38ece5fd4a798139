"""lcia: an assistant that keeps learning.

The public names are imported when first used, so that ``import lcia`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcia.assistant import Answer, Assistant
    from lcia.ema import DynamicEMA
    from lcia.grouping import InstructionCodebook, RouteDecision, Router
    from lcia.integrations.transformers import DynamicEMACallback
    from lcia.learner import ContinualLearner, Outcome

__all__ = [
    "Answer",
    "Assistant",
    "ContinualLearner",
    "DynamicEMA",
    "DynamicEMACallback",
    "InstructionCodebook",
    "Outcome",
    "RouteDecision",
    "Router",
]

_HOMES = {
    "Answer": "lcia.assistant",
    "Assistant": "lcia.assistant",
    "ContinualLearner": "lcia.learner",
    "DynamicEMA": "lcia.ema",
    "DynamicEMACallback": "lcia.integrations.transformers",
    "InstructionCodebook": "lcia.grouping",
    "Outcome": "lcia.learner",
    "RouteDecision": "lcia.grouping",
    "Router": "lcia.grouping",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lcia' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
