"""Metrics against matrices and sums by hand, and properties; docs/metrics.md says the same."""

import contextlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_task
from lcia.errors import DataError, StoreError
from lcia.evaluation import MEASURES, METRICS, AccuracyMatrix, summarise
from lcia.evaluation.generate import Prediction
from lcia.evaluation.metrics import averaging, general_ability, routing_accuracy
from lcia.learner.scoring import draw
from lcia.registry import SCORERS


def matrix_of(rows):
    return AccuracyMatrix(
        tasks=tuple(f"t{i}" for i in range(len(rows[0]))), rows=tuple(map(tuple, rows))
    )


def numpy_metrics(rows):
    """The formulas of the docs on a (T + 1, T) array, written without the package."""
    R = np.asarray(rows, dtype=np.float64)
    T = R.shape[1]
    learned = R[1:]
    best = np.array([learned[i : T - 1, i].max() for i in range(T - 1)])
    return {
        "average_accuracy": R[T].mean(),
        "forgetting": (best - R[T, : T - 1]).mean(),
        "new_accuracy": np.diag(learned).mean(),
        "backward_transfer": (R[T] - np.diag(learned))[:-1].mean(),
        "forward_transfer": (np.diag(R[:-1]) - R[0])[1:].mean(),
        "mean_average_accuracy": np.mean([learned[t, : t + 1].mean() for t in range(T)]),
    }


@st.composite
def full_rows(draw, smallest=2):
    count = draw(st.integers(smallest, 6))
    row = st.lists(st.floats(0, 100), min_size=count, max_size=count)
    return draw(st.lists(row, min_size=count + 1, max_size=count + 1))


def test_a_matrix_worked_out_by_hand():
    rows = [[10, 20, 30], [80, 25, 31], [70, 90, 40], [60, 85, 50]]
    assert summarise(matrix_of(rows)) == pytest.approx(
        {
            "average_accuracy": (60 + 85 + 50) / 3,
            "forgetting": ((80 - 60) + (90 - 85)) / 2,
            "new_accuracy": (80 + 90 + 50) / 3,
            "backward_transfer": ((60 - 80) + (85 - 90)) / 2,
            "forward_transfer": ((25 - 20) + (40 - 30)) / 2,
            "mean_average_accuracy": (80 + (70 + 90) / 2 + (60 + 85 + 50) / 3) / 3,
        },
        abs=1e-12,
    )


@given(full_rows())
def test_every_metric_equals_numpy(rows):
    expected = numpy_metrics(rows)
    assert summarise(matrix_of(rows)) == pytest.approx(expected, rel=1e-12, abs=1e-10)


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first():
    rows = [[0, 0, 0], [50, 0, 0], [90, 60, 0], [70, 60, 40]]
    values = summarise(matrix_of(rows))
    assert values["forgetting"] == (20 + 0) / 2
    assert values["backward_transfer"] == (20 + 0) / 2


@given(full_rows())
def test_backward_transfer_is_at_least_minus_forgetting(rows):
    values = summarise(matrix_of(rows))
    assert values["backward_transfer"] >= -values["forgetting"] - 1e-9


@given(rows=full_rows(), shift=st.floats(0, 50))
def test_differences_ignore_a_shift_and_means_follow_it(rows, shift):
    low = summarise(matrix_of([[cell / 2 for cell in row] for row in rows]))
    high = summarise(matrix_of([[cell / 2 + shift for cell in row] for row in rows]))
    differences = {"forgetting", "backward_transfer", "forward_transfer"}
    for name, value in low.items():
        expected = value if name in differences else value + shift
        assert high[name] == pytest.approx(expected, abs=1e-9)


def test_after_one_task_only_the_accuracies_exist():
    assert summarise(matrix_of([[10], [80]])) == {
        "average_accuracy": 80,
        "forgetting": None,
        "new_accuracy": 80,
        "backward_transfer": None,
        "forward_transfer": None,
        "mean_average_accuracy": 80,
    }


def test_before_any_task_there_is_no_metric():
    assert set(summarise(AccuracyMatrix.start(["a", "b"], {"a": 1.0})).values()) == {None}


@pytest.mark.parametrize(
    ("cell", "lost"),
    [
        ((0, 1), set()),
        ((0, 2), {"forward_transfer"}),
        ((1, 2), {"forward_transfer"}),
        ((1, 3), set()),
        (
            (1, 1),
            {"forgetting", "new_accuracy", "backward_transfer", "mean_average_accuracy"},
        ),
        ((2, 1), {"forgetting", "mean_average_accuracy"}),
        ((3, 3), {"average_accuracy", "new_accuracy", "mean_average_accuracy"}),
        (
            (3, 1),
            {"average_accuracy", "forgetting", "backward_transfer", "mean_average_accuracy"},
        ),
    ],
)
def test_a_missing_cell_takes_away_what_needs_it_and_nothing_else(cell, lost):
    rows = [[10, 20, 30], [80, 25, 31], [70, 90, 40], [60, 85, 50]]
    complete = summarise(matrix_of(rows))
    rows[cell[0]][cell[1] - 1] = None
    values = summarise(matrix_of(rows))
    assert {name for name, value in values.items() if value is None} == lost
    assert all(values[name] == complete[name] for name in set(values) - lost)


def test_tasks_still_to_come_do_not_count():
    half = [[10, 20, 30], [80, 25, 31], [70, 90, 40]]
    assert summarise(matrix_of(half)) == summarise(matrix_of([row[:2] for row in half]))


def test_every_metric_is_labelled():
    assert list(METRICS) == list(summarise(matrix_of([[1], [2]])))
    assert all(metric.label and "R[" in metric.formula for metric in METRICS.values())


def prediction(task, group):
    return Prediction(
        task=task,
        sample="1",
        prompt="?",
        answers=("a",),
        prediction="a",
        score=1.0,
        group=group,
        adapter=None,
        similarity=1.0,
        reason="reached",
    )


def test_routing_is_right_where_the_group_learned_the_task():
    routed = [("a", "g1"), ("a", "g2"), ("b", "g2"), ("b", None)]
    predictions = [prediction(task, group) for task, group in routed]
    assert routing_accuracy(predictions, {"a": "g1", "b": "g2"}) == 50
    assert routing_accuracy(predictions, {}) is None
    assert routing_accuracy([], {"a": "g1"}) is None


def test_general_ability_is_the_mean_change():
    before = {"a": 50.0, "b": 20.0}
    assert general_ability(before, {"a": 40.0, "b": 24.0}) == pytest.approx(-3)
    assert general_ability({}, {}) is None


def test_averaging_has_a_horizon_of_one_over_the_mean_gain():
    found = averaging([0.9, 0.8], [0.5, 0.25])
    assert found["beta_mean"] == pytest.approx(0.85)
    assert found["horizon_steps"] == pytest.approx(1 / 0.15)
    assert found["fallback_share"] == pytest.approx(37.5)
    assert averaging([1.0], [0.0])["horizon_steps"] is None
    assert set(averaging([], []).values()) == {None}


PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_example_prints_what_the_page_shows():
    assert len(EXAMPLES) == 2
    names = {}
    for code, shown in EXAMPLES:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == shown


def test_the_sums_of_the_worked_example_are_right():
    sums = re.findall(r"^- ([a-z ]+): (.*) = ([−\d.]+)$", PAGE, re.MULTILINE)
    assert len(sums) == len(METRICS)
    results = dict(line.split(": ") for line in EXAMPLES[0][1].splitlines())
    for name, terms, total in sums:
        assert eval(terms.replace("−", "-")) == pytest.approx(
            float(total.replace("−", "-")), abs=0.005
        )
        assert float(results[name.replace(" ", "_")]) == float(total.replace("−", "-"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_stands_with_its_formula_and_direction(name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    metric = METRICS[name]
    assert metric.formula in row
    assert row.endswith("| higher |" if metric.higher_is_better else "| lower |")


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in METRICS])
def test_every_other_number_stands_with_its_formula_and_direction(name):
    measure = MEASURES[name]
    better = {True: "higher ", False: "lower ", None: ""}[measure.higher_is_better]
    assert f"| `{name}` | {measure.formula} | {better}|" in PAGE.splitlines()


def test_every_scorer_is_listed():
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)) >= {*SCORERS.builtin}


@st.composite
def matrices(draw):
    count = draw(st.integers(0, 5))
    cell = st.none() | st.floats(0, 100)
    row = st.tuples(*[cell] * count)
    rows = draw(st.lists(row, min_size=1, max_size=count + 1))
    return AccuracyMatrix(tasks=tuple(f"täsk {i}" for i in range(count)), rows=tuple(rows))


@given(matrices())
def test_json_gives_an_equal_matrix_back(matrix):
    text = json.dumps(matrix.to_json(), allow_nan=False)
    assert AccuracyMatrix.from_json(json.loads(text)) == matrix


@given(matrices())
def test_a_matrix_can_be_rebuilt_row_by_row(matrix):
    grown = AccuracyMatrix.start(matrix.tasks, matrix.row(0))
    for t in range(1, matrix.learned + 1):
        grown = grown.append(matrix.tasks[t - 1], matrix.row(t))
    assert grown == matrix


def test_save_and_load(tmp_path):
    matrix = AccuracyMatrix.start(["a", "b"], {"a": 10 / 3}).append("a", {"a": 80.1, "b": None})
    matrix.save(tmp_path / "matrix.json")
    assert AccuracyMatrix.load(tmp_path / "matrix.json") == matrix


def test_cells_are_numbered_as_in_the_formulas():
    matrix = AccuracyMatrix(tasks=("a", "b"), rows=((1.0, 2.0), (3.0, 4.0)))
    assert matrix[0, 1] == 1.0
    assert matrix[1, 2] == 4.0
    assert matrix.row(1) == {"a": 3.0, "b": 4.0}
    assert matrix.learned == 1


@pytest.mark.parametrize("cell", [(0, 0), (2, 1), (0, 3), (-1, 1)])
def test_a_cell_outside_is_an_error(cell):
    matrix = AccuracyMatrix(tasks=("a", "b"), rows=((1.0, 2.0), (3.0, 4.0)))
    with pytest.raises(IndexError, match="outside"):
        matrix[cell]


def test_an_unknown_task_adds_a_column_and_leaves_the_old_matrix_alone():
    first = AccuracyMatrix.start().append("a", {"a": 90.0})
    second = first.with_scores(1, {"b": 20.0}).append("b", {"a": 80.0, "b": 70.0})
    assert first == AccuracyMatrix(tasks=("a",), rows=((None,), (90.0,)))
    assert second.tasks == ("a", "b")
    assert second.rows == ((None, None), (90.0, 20.0), (80.0, 70.0))


@pytest.mark.parametrize(
    ("tasks", "rows", "message"),
    [
        (("a", "a"), ((None, None),), "'a' more than once"),
        (("a",), (), "0 rows"),
        (("a",), ((None,),) * 3, "3 rows for 1 tasks; expected 1 .* to 2"),
        (("a",), ((None, None),), "Row 0 has 2 cells"),
        (("a",), ((100.5,),), "Row 0, task 'a' is 100.5"),
        (("a",), ((None,), (float("nan"),)), "Row 1, task 'a' is nan"),
    ],
)
def test_what_is_no_matrix_is_refused(tasks, rows, message):
    with pytest.raises(DataError, match=message):
        AccuracyMatrix(tasks=tasks, rows=rows)


def test_rows_follow_the_order_of_learning():
    with pytest.raises(DataError, match="belongs to the task 'a', not to 'b'"):
        AccuracyMatrix.start(["a", "b"]).append("b", {})
    with pytest.raises(DataError, match="no row 1"):
        AccuracyMatrix.start(["a"]).with_scores(1, {"a": 1.0})


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tasks": ["a"]}', '{"tasks": ["a"], "rows": [["x"]]}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "matrix.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"matrix\.json: no accuracy matrix"):
        AccuracyMatrix.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.json"):
        AccuracyMatrix.load(tmp_path / "nowhere.json")


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
