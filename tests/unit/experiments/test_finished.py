"""Which finished runs are found, and which may be compared."""

import pytest

from finished_runs import write_run
from lcia.errors import ConfigError
from lcia.experiments.comparison import compare
from lcia.experiments.finished import find_runs, write_results
from lcia.reports.compare_files import as_json


def test_runs_come_in_the_order_they_were_begun(tmp_path):
    write_run(tmp_path / "a", "zebra", begun=1)
    write_run(tmp_path / "b", "ant", begun=3)
    write_run(tmp_path / "a", "middle", begun=2)
    runs, warnings = find_runs([tmp_path / "b", tmp_path / "a"])
    assert [run.label for run in runs] == ["zebra", "middle", "ant"]
    assert warnings == []
    (alone,), _ = find_runs([tmp_path / "a" / "zebra-seed0"])
    assert (alone.label, alone.key) == ("zebra", (0, "as_listed"))
    assert tuple(alone.fingerprints) == alone.matrix.tasks


def test_a_folder_given_twice_counts_once(tmp_path):
    write_run(tmp_path / "a")
    runs, _ = find_runs([tmp_path, tmp_path / "a"])
    assert len(runs) == 1


def test_what_is_not_finished_is_left_out_by_name(tmp_path):
    write_run(tmp_path, "done")
    (write_run(tmp_path, "going") / "metrics.json").unlink()
    runs, warnings = find_runs([tmp_path])
    assert [run.label for run in runs] == ["done"]
    assert warnings == [f"{tmp_path / 'going-seed0'} is not finished and left out."]


def test_unpaired_seeds_and_orders_are_named(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a", seed=seed, begun=seed)
    write_run(tmp_path, "b", begun=2)
    _, warnings = find_runs([tmp_path])
    assert warnings == ["b has no run with seed 1 order as_listed: it is paired without."]


def test_learned_at_once_in_one_order_lacks_no_other(tmp_path):
    for order, tasks in (("there", ("x", "y")), ("back", ("y", "x"))):
        for seed in (0, 1):
            write_run(tmp_path, "seq", method="sequential", order=order, seed=seed, tasks=tasks)
    write_run(tmp_path, "joint", method="multitask", order="there", tasks=("x", "y"), begun=1)
    _, warnings = find_runs([tmp_path])
    missing = "seed 1 order back, seed 1 order there"
    assert warnings == [f"joint has no run with {missing}: it is paired without."]


def test_another_order_of_the_same_tasks_is_the_same_stream(tmp_path):
    write_run(tmp_path, order="there", tasks=("x", "y"))
    write_run(tmp_path, order="back", tasks=("y", "x"))
    assert len(find_runs([tmp_path])[0]) == 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"tasks": ("x", "y")}, {"label": "b", "tasks": ("x", "z")}, "different streams: y, z"),
        (
            {"settings": {"dtype": "float32"}},
            {"seed": 1, "settings": {"dtype": "bfloat16"}},
            'but dtype is "float32" and "bfloat16"',
        ),
        ({}, {}, "are both 'lcia' with seed 0 and order as_listed"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, first, second, expected):
    write_run(tmp_path / "first", **first)
    write_run(tmp_path / "second", begun=1, **second)
    with pytest.raises(ConfigError, match=expected) as caught:
        find_runs([tmp_path])
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "first") in str(caught.value)
    assert str(tmp_path / "second") in str(caught.value)


def test_no_finished_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no finished run there"):
        find_runs([tmp_path, tmp_path / "nowhere"])


def test_a_results_file_compares_like_the_runs_it_was_written_from(tmp_path):
    for label in ("lcia", "sequential"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", label, seed=seed, beta=0.9, begun=seed)
    runs, _ = find_runs([tmp_path / "runs"])
    (tmp_path / "study").mkdir()
    write_results(tmp_path / "study" / "results.jsonl", runs)
    for place in (tmp_path / "study", tmp_path / "study" / "results.jsonl"):
        again, warnings = find_runs([place])
        assert warnings == []
        assert as_json(compare(again)) == as_json(compare(runs))
        assert [run.record for run in again] == [run.record for run in runs]
        assert all(run.steps() == () for run in again)


def test_a_line_that_is_no_result_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"label": "lcia"}\n')
    with pytest.raises(ConfigError, match=r"results.jsonl:1: has no 'run'; expected a line of"):
        find_runs([tmp_path])
