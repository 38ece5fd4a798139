"""Some of the held-out samples: within the budget, all in turn, the same for the same matrix."""

from collections import Counter

import pytest

from conftest import make_task
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.learner.scoring import draw

TASKS = {
    name: make_task(name, "Say it.", {"a": "b"}, test=size)
    for name, size in {"first": 4, "second": 6, "third": 1, "fourth": 4, "fifth": 5}.items()
}


def read(names):
    return [TASKS[name] for name in names]


def versions(budget, count, *, seed=0, names=tuple(TASKS)):
    """Draw for one version after another; yield what each draws, by task."""
    matrix = AccuracyMatrix.start(names)
    for number in range(count):
        drawn = draw(names, read, budget=budget, matrix=matrix, seed=seed)
        taken = {task.name: [sample.id for sample in task.test] for task in drawn}
        counts = {name: len(ids) for name, ids in taken.items()}
        empty = (None,) * len(names)
        matrix = AccuracyMatrix(
            tasks=matrix.tasks,
            rows=(*matrix.rows, empty) if number < len(names) else matrix.rows,
            counts=(*(matrix.counts or (empty,)), empty) if number < len(names) else matrix.counts,
        ).with_scores(min(number + 1, len(names)), dict.fromkeys(counts, 50.0), counts=counts)
        yield taken


@pytest.mark.parametrize("budget", [1, 2, 5, 7, 12, 19])
def test_never_more_than_the_budget_and_each_sample_once(budget):
    for taken in versions(budget, 5):
        assert 1 <= sum(map(len, taken.values())) <= budget
        assert all(len(set(ids)) == len(ids) for ids in taken.values())


def test_all_samples_fit_into_a_large_budget():
    taken = next(versions(1000, 1))
    assert taken == {name: [s.id for s in task.test] for name, task in TASKS.items()}


def test_every_task_has_its_turn_before_any_has_another():
    for seed in range(5):
        names = [name for taken in versions(1, 5, seed=seed) for name in taken]
        assert sorted(names) == sorted(TASKS)


def test_of_a_task_every_sample_comes_before_one_comes_again():
    seen = Counter(i for taken in versions(5, 4) for i in taken["first"])
    assert sorted(seen) == [s.id for s in TASKS["first"].test]
    assert set(seen.values()) == {1}


def test_only_drawn_tasks_are_read_and_a_seed_draws_others():
    asked = []

    def noting(names):
        asked.extend(names)
        return read(names)

    empty = AccuracyMatrix.start(tuple(TASKS))
    for seed in range(6):
        draw(tuple(TASKS), noting, budget=1, matrix=empty, seed=seed)
    assert len(asked) == 6
    assert len(set(asked)) > 1
