import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.errors import DataError, StoreError
from lcia.evaluation import AccuracyMatrix


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
