import math

import pytest

from lcia.evaluation import AccuracyMatrix
from lcia.reports import GroupRecord, RunRecord, SampleAnswer, StepRecord


def build_matrix(tasks):
    """Task i scores 90 when learned and a little less after each later task; 10 before."""
    loss = 5.0 if len(tasks) < 10 else 2.0
    matrix = AccuracyMatrix.start(tasks, dict.fromkeys(tasks, 10.0))
    for t, task in enumerate(tasks, 1):
        scores = {name: 90 - loss * (t - i) for i, name in enumerate(tasks[:t], 1)}
        matrix = matrix.append(task, scores)
    return matrix


def build_steps(tasks, *, count=5):
    return tuple(
        StepRecord(
            task=task,
            step=step,
            loss=math.exp(-step),
            beta_mean=0.9,
            beta_min=0.8,
            beta_max=0.99,
            fallbacks={"first_step": 1.0} if step == 1 else {"out_of_range": 0.25},
        )
        for task in tasks
        for step in range(1, count + 1)
    )


@pytest.fixture
def make_run():
    def make(method="lcia", tasks=("dates", "words"), **fields):
        tasks = tuple(tasks)
        defaults = {
            "matrix": build_matrix(tasks),
            "steps": build_steps(tasks),
            "groups": (
                GroupRecord(
                    id="g1",
                    tasks=tasks,
                    instructions=tuple(f"Say {k}." for k in range(5)),
                    adapter_bytes=1_843_200,
                ),
            ),
            "routing": {task: {"g1": 0.75, "g2": 0.25} for task in tasks},
            "samples": (
                SampleAnswer(
                    prompt="When?",
                    answer="2021-03-03",
                    expected="2021-03-04",
                    group="g1",
                    similarity=0.97312,
                    reason="most similar",
                ),
            ),
        }
        return RunRecord(method=method, **(defaults | fields))

    return make
