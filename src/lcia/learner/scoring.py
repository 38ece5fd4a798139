"""How the held-out samples of tasks are answered and scored: the same in learn, eval and groups."""

from collections.abc import Sequence
from typing import Any

from lcia.config import AssistantConfig
from lcia.data.task import Task
from lcia.evaluation.drawn import draw
from lcia.evaluation.generate import (
    Adapters,
    Prediction,
    counts_of,
    evaluate,
    scores_percent,
)
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.grouping import InstructionCodebook, Router
from lcia.models.host import AdapterHost
from lcia.store.version import Version


def scored_tasks(version: Version, config: AssistantConfig, matrix: AccuracyMatrix) -> list[Task]:
    """Return a version's tasks with the held-out samples that its successor answers."""
    budget = config.evaluation.samples
    if budget is None:
        return version.tasks()
    names = list(version.manifest["tasks"])
    return draw(names, version.tasks, budget=budget, matrix=matrix, seed=config.seed)


def scored_again(version: Version, config: AssistantConfig, matrix: AccuracyMatrix) -> list[Task]:
    """Return the same for a version without a new task: its last task's samples all count."""
    tasks = scored_tasks(version, config, matrix)
    if config.evaluation.samples is None:
        return tasks
    last = matrix.tasks[-1:]
    return [*(task for task in tasks if task.name not in last), *version.tasks(last)]


def measured_again(
    matrix: AccuracyMatrix, config: AssistantConfig, predictions: Sequence[Prediction]
) -> AccuracyMatrix:
    """Return the matrix with its last row measured again, and with no older cell in it."""
    if not predictions:
        return matrix
    scores, row = scores_percent(predictions), matrix.learned
    if config.evaluation.samples is None:
        return matrix.with_scores(row, scores)
    return matrix.without_scores(row).with_scores(row, scores, counts=counts_of(predictions))


def score_tasks(
    host: AdapterHost,
    config: AssistantConfig,
    tasks: Sequence[Task],
    *,
    codebook: InstructionCodebook,
    adapters: Adapters,
    task_given: bool | None = None,
    **options: Any,
) -> list[Prediction]:
    """Answer the held-out samples of tasks, each by the group it is routed to, and score them.

    Every process of a run calls this, as ``evaluate``.

    Args:
        host: the base model.
        config: the assistant's settings.
        tasks: their ``test`` samples are answered.
        codebook: the groups that samples are routed to.
        adapters: group to key and folder of its adapter.
        task_given: whether samples go to the group that learned their task, past the router:
            what routing costs is the difference. None: as the method does.
        **options: other arguments of ``evaluate``.
    """
    method = config.build_method()
    router = Router(codebook)
    options |= {
        # Where nothing is trained, the base model answers.
        "adapters": adapters if method.trains else dict.fromkeys(adapters),
        "batch_size": config.generation.batch_size,
    }
    if method.task_given if task_given is None else task_given:
        options["given"] = router.route_task
    return evaluate(host, tasks, route=router.route, **options)
