"""All numbers of a run: the metrics of its accuracy matrix, and what stands beside it."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from lcia.evaluation.metrics import METRICS, Measure

if TYPE_CHECKING:
    from lcia.evaluation.generate import Prediction


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        **METRICS,
        "general_ability": Measure(
            label="General ability (Δ)",
            short="General Δ",
            formula="mean over the held-out tasks, never trained, of the score after the last task "
            "minus the base model's",
            unit="points",
            higher_is_better=True,
        ),
        "routing_accuracy": Measure(
            label="Routing accuracy",
            short="Routing",
            formula="share of the test samples sent to the group that learned their task",
            unit="percent",
            higher_is_better=True,
        ),
        "task_given_accuracy": Measure(
            label="Avg.ACC with the task given",
            short="Task given",
            formula="mean over i of R[T, i], every sample sent to the group that learned its task",
            unit="percent",
            higher_is_better=True,
        ),
        "groups": Measure(
            label="Groups", short="Groups", formula="adapter groups at the end", unit="count"
        ),
        "trainable_parameters": Measure(
            label="Trainable parameters",
            short="Trained",
            formula="numbers in the adapter trained last",
            unit="count",
        ),
        "stored_parameters": Measure(
            label="Stored parameters",
            short="Stored",
            formula="numbers in all adapters and in what the method keeps with them",
            unit="count",
        ),
        "stored_samples": Measure(
            label="Stored samples",
            short="Samples",
            formula="training samples that the method keeps",
            unit="count",
        ),
        "steps_per_task": Measure(
            label="Steps a task",
            short="Steps",
            formula="optimizer steps over tasks",
            unit="steps",
        ),
        "beta_mean": Measure(
            label="Balance weight β",
            short="β",
            formula="mean over the steps that average, and over tensors",
        ),
        "horizon_steps": Measure(
            label="Horizon",
            short="Horizon",
            formula="1 / (1 − mean β): steps the average remembers",
            unit="steps",
        ),
        "fallback_share": Measure(
            label="Fallbacks",
            short="Fallbacks",
            formula="share of tensor updates whose β is the fallback, over the steps that average",
            unit="percent",
        ),
        "seconds": Measure(
            label="Time",
            short="Time",
            formula="training and answering, all tasks",
            unit="seconds",
            higher_is_better=False,
        ),
    }
)
"""By name, in the order of tables."""


def routing_accuracy(
    predictions: "Sequence[Prediction]", learned_by: Mapping[str, str]
) -> float | None:
    """Share of the samples sent to the group that learned their task, in percent.

    Args:
        predictions: on test samples of the tasks.
        learned_by: task to group.

    Returns:
        None if there is nothing to route: no samples, or no groups.
    """
    if not predictions or not learned_by:
        return None
    right = sum(p.group == learned_by[p.task] for p in predictions)
    return 100 * right / len(predictions)


def general_ability(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Mean over tasks of score after minus score before, in points; None without tasks.

    Args:
        before: task to score of the base model, in percent.
        after: the same tasks' scores of the assistant.
    """
    return (
        math.fsum(after[task] - before[task] for task in before) / len(before) if before else None
    )


def averaging(betas: Sequence[float], fallbacks: Sequence[float]) -> dict[str, float | None]:
    """Return ``beta_mean``, ``horizon_steps`` and ``fallback_share``; None without steps.

    Args:
        betas: mean balance weight of each step that averaged, in [0, 1].
        fallbacks: share of its tensors that fell back, in [0, 1].
    """
    if not betas:
        return {"beta_mean": None, "horizon_steps": None, "fallback_share": None}
    beta = math.fsum(betas) / len(betas)
    return {
        "beta_mean": beta,
        "horizon_steps": 1 / (1 - beta) if beta < 1 else None,
        "fallback_share": 100 * math.fsum(fallbacks) / len(fallbacks),
    }
