"""How the held-out samples of tasks are answered and scored: the same in learn, eval and groups."""

from collections.abc import Sequence
from typing import Any

from lcia.config import AssistantConfig
from lcia.data.task import Task
from lcia.evaluation.generate import Adapters, Prediction, evaluate
from lcia.grouping import InstructionCodebook, Router
from lcia.models.host import AdapterHost


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
