"""Continuous batching over mixed adapters: no HTTP in it, usable from Python.

The public names are imported when first used: whoever needs the limits alone needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcia.serving.engine.engine import Engine
    from lcia.serving.engine.job import Prompt
    from lcia.serving.engine.limits import EngineLimits
    from lcia.serving.engine.sampling import Sampling

__all__ = ["Engine", "EngineLimits", "Prompt", "Sampling"]

_HOMES = {"Engine": "engine", "EngineLimits": "limits", "Prompt": "job", "Sampling": "sampling"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
