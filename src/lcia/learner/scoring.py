"""Which held-out samples are answered, and how they are scored: the same everywhere.

``learn``, ``eval`` and the commands that change groups share it.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lcia.config import AssistantConfig
from lcia.data.sample import Task
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


Read = Callable[[Sequence[str]], Sequence[Task]]


def draw(
    names: Sequence[str], read: Read, *, budget: int, matrix: AccuracyMatrix, seed: int
) -> list[Task]:
    """Return tasks with the held-out samples that a version answers, at most ``budget`` together.

    Each task gets the same share; a rest goes, one sample each, to those that were measured longest
    ago. Of a task, samples take turns: none comes again before all others came. All that this
    depends on is in the matrix, so a run that was stopped draws the same.

    Args:
        names: of the tasks, in the order of learning.
        read: names to tasks; called with those drawn alone, for reading is what costs.
        budget: samples, at least 1.
        matrix: of the version that the new one builds on.
        seed: of the assistant: orders tasks that were measured equally long ago, and samples.
    """
    if not names:
        return []
    last, answered = _measured(matrix)
    share, rest = divmod(budget, len(names))
    shuffled = random.Random(f"tasks {seed}").sample(list(names), len(names))
    shuffled.sort(key=lambda name: last.get(name, 0))
    favoured = set(shuffled[:rest])
    chosen = [name for name in names if share or name in favoured]
    drawn = []
    for task in read(chosen):
        places = list(range(len(task.test)))
        random.Random(f"samples {seed} {task.name}").shuffle(places)
        begin = answered.get(task.name, 0) % len(places)
        size = min(share + (task.name in favoured), len(places))
        taken = sorted((places + places)[begin : begin + size])
        drawn.append(replace(task, test=tuple(task.test[place] for place in taken)))
    return drawn


def _measured(matrix: AccuracyMatrix) -> tuple[dict[str, int], dict[str, int]]:
    """Return task to the last row that measured it, and to the samples that all rows answered."""
    last: dict[str, int] = {}
    answered: Counter[str] = Counter()
    for t in range(1, matrix.learned + 1):
        for i, count in matrix.answered(t).items():
            if count:
                answered[matrix.tasks[i - 1]] += count
                last[matrix.tasks[i - 1]] = t
    return last, answered
