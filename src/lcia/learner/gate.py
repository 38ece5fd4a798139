"""Whether a new version may replace the current one."""

from collections.abc import Mapping

from lcia.config import GateConfig
from lcia.errors import GateError


def check_gate(
    config: GateConfig, *, before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> None:
    """Refuse a version that lost too much on an earlier task.

    Args:
        config: ``max_drop`` in points of the score; None admits all.
        before: task to score in percent of the current version.
        after: task to score in percent of the new one.

    Raises:
        GateError: a task fell by more than ``max_drop``.
    """
    if config.max_drop is None:
        return
    drops = {
        task: old - new
        for task, old in before.items()
        if old is not None and (new := after.get(task)) is not None
    }
    worst = max(drops, key=lambda task: drops[task], default=None)
    if worst is not None and drops[worst] > config.max_drop:
        raise GateError(
            f"gate: task '{worst}' fell by {drops[worst]:.1f} points "
            f"(from {before[worst]:.1f} to {after[worst]:.1f}); gate.max_drop allows "
            f"{config.max_drop:g}. The assistant was left as it was."
        )
