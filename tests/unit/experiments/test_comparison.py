"""Means, deviations, pairs and ratios, computed again with numpy."""

import html
import json
import random
import re

import numpy as np
import pytest
import yaml

from lcia.errors import ConfigError
from lcia.evaluation import MEASURES, METRICS, AccuracyMatrix, summarise
from lcia.experiments.comparison import Spread, compare
from lcia.experiments.finished import find_runs, write_results
from lcia.reports.compare_page import as_json, write_comparison
from lcia.reports.tables import settings_table

TASKS = ("dates", "words", "signs")


def write_run(
    root,
    label="lcia",
    *,
    method="lcia",
    seed=0,
    order="as_listed",
    tasks=TASKS,
    loss=4.0,
    learns=80.0,
    beta=None,
    begun=0.0,
    settings=None,
    **metrics,
):
    """Write one finished sub-run: tasks score ``learns``, and ``loss`` less after each later."""
    folder = (
        root / f"{label}-seed{seed}" if order == "as_listed" else root / f"{label}-{seed}-{order}"
    )
    folder.mkdir(parents=True)
    noise = random.Random(f"{label} {seed} {order}")
    matrix = AccuracyMatrix.start(tasks, {task: 10.0 + noise.random() for task in tasks})
    steps = []
    for t, task in enumerate(tasks, 1):
        scores = {
            name: max(0.0, learns - loss * (t - i) + 3 * noise.random())
            for i, name in enumerate(tasks[:t], 1)
        }
        if t < len(tasks):
            scores[tasks[t]] = 15 + 5 * noise.random()
        matrix = matrix.append(task, scores)
        for step in range(1, 13):
            event = {"event": "step", "time": begun, "task": task, "step": step, "loss": 1 / step}
            if beta is not None and t > 1:
                middle = beta + 0.05 * noise.random()
                event |= {
                    "ema/beta_mean": middle,
                    "ema/beta_min": middle - 0.1,
                    "ema/beta_max": min(1.0, middle + 0.02),
                    "ema/fallback/out_of_range": 0.3,
                }
            steps.append(event)
    if method == "multitask":
        empty = (None,) * len(tasks)
        matrix = AccuracyMatrix(tasks=matrix.tasks, rows=(*[empty] * len(tasks), matrix.rows[-1]))
    found = {
        **dict.fromkeys(MEASURES),
        **summarise(matrix),
        "groups": 4,
        "seconds": 100.0,
        "stored_parameters": 2_400_000,
        **metrics,
    }
    if beta is not None:
        found |= {"beta_mean": beta, "horizon_steps": 1 / (1 - beta), "fallback_share": 30.0}
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "label": label,
                "method": {"name": method},
                "seed": seed,
                "order": order,
                "matrix": matrix.to_json(),
                "metrics": found,
                "environment": {"platform": "p", "torch": "2"},
            }
        )
    )
    resolved = {
        "settings": {"model": "m", "method": {"name": method}, "seed": seed, **(settings or {})},
        "tasks": {task: f"print of {task}" for task in tasks},
        "held_out": {},
    }
    (folder / "resolved.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    first = {"event": "grouped", "time": begun}
    (folder / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [first, *steps]))
    return folder


@pytest.fixture
def comparison(tmp_path):
    """Three labels over two seeds and two orders; ``lcia`` lacks one of the four."""
    begun = iter(range(99))
    root = tmp_path / "runs"
    for label, method, loss in (("seq", "sequential", 20), ("joint", "multitask", 0)):
        for seed in (0, 1):
            for order in ("a", "b"):
                write_run(
                    root, label, method=method, seed=seed, order=order, loss=loss, begun=next(begun)
                )
    for seed, order in ((0, "a"), (0, "b"), (1, "a")):
        write_run(root, "lcia", seed=seed, order=order, loss=5, beta=0.9, begun=next(begun))
    runs, warnings = find_runs([root])
    return compare(runs, warnings=warnings)


def values(comparison, label, name):
    (found,) = [summary for summary in comparison.labels if summary.label == label]
    return {run.key: run.metrics[name] for run in found.runs}, found


def test_means_deviations_and_pairs_are_those_of_numpy(comparison):
    assert [summary.label for summary in comparison.labels] == ["seq", "joint", "lcia"]
    assert comparison.baseline == "seq"
    assert comparison.warnings == ("lcia has no run with seed 1 order b: it is paired without.",)
    for name in METRICS:
        base, _ = values(comparison, "seq", name)
        own, found = values(comparison, "lcia", name)
        spread, difference = found.measures[name], found.differences[name]
        listed = np.array(list(own.values()))
        assert spread.mean == pytest.approx(listed.mean())
        assert spread.std == pytest.approx(listed.std(ddof=1))
        assert spread.n == difference.n == 3
        paired = np.array([own[key] - base[key] for key in own])
        assert difference.mean == pytest.approx(paired.mean())
        assert difference.std == pytest.approx(paired.std(ddof=1))


def test_ratios_are_of_means_over_what_both_have(comparison):
    base, seq = values(comparison, "seq", "forgetting")
    own, found = values(comparison, "lcia", "forgetting")
    expected = np.mean(list(own.values())) / np.mean([base[key] for key in own])
    assert found.forgetting_ratio == pytest.approx(expected)
    assert seq.forgetting_ratio == pytest.approx(1)
    joint, joint_summary = values(comparison, "joint", "average_accuracy")
    own, _ = values(comparison, "lcia", "average_accuracy")
    expected = 100 * np.mean(list(own.values())) / np.mean(list(joint.values()))
    assert found.share_of_joint == pytest.approx(expected)
    assert joint_summary.share_of_joint == pytest.approx(100)


def test_learned_at_once_is_paired_with_every_order(tmp_path):
    for order, tasks in (("there", TASKS), ("back", TASKS[::-1])):
        write_run(tmp_path, "seq", method="sequential", order=order, tasks=tasks)
    write_run(tmp_path, "joint", method="multitask", order="there", begun=1)
    runs, _ = find_runs([tmp_path])
    for baseline, other, sign in (("seq", "joint", 1), ("joint", "seq", -1)):
        comparison = compare(runs, baseline=baseline)
        own, _ = values(comparison, "seq", "average_accuracy")
        (joint,) = values(comparison, "joint", "average_accuracy")[0].values()
        _, found = values(comparison, other, "average_accuracy")
        paired = sign * np.array([joint - score for score in own.values()])
        difference = found.differences["average_accuracy"]
        assert difference.n == 2
        assert difference.mean == pytest.approx(paired.mean())
        assert difference.std == pytest.approx(paired.std(ddof=1))


def test_what_is_unavailable_stays_so(comparison):
    _, joint = values(comparison, "joint", "forgetting")
    assert joint.measures["forgetting"] is joint.differences["forgetting"] is None
    assert joint.forgetting_ratio is None
    assert Spread.of([1.0, None]) is None
    assert Spread.of([]) is None
    assert Spread.of([2.0]) == Spread(mean=2.0, std=None, n=1)


def test_a_baseline_that_forgets_nothing_has_no_ratio(tmp_path):
    write_run(tmp_path, "still", loss=-20, learns=30, begun=0)
    write_run(tmp_path, "lossy", loss=20, begun=1)
    still, lossy = compare(find_runs([tmp_path])[0]).labels
    assert still.forgetting_ratio is lossy.forgetting_ratio is None


def test_another_baseline_by_name(comparison):
    again = compare(comparison.runs, baseline="lcia")
    assert again.labels[0].differences["forgetting"].n == 3
    with pytest.raises(ConfigError, match="Nearest: lcia"):
        compare(comparison.runs, baseline="lci")


def test_the_mean_matrix_is_the_mean_of_its_cells(comparison):
    _, seq = values(comparison, "seq", "forgetting")
    cells = [np.array(run.matrix.rows[1:], float) for run in seq.runs if run.order == "a"]
    found = np.array(seq.matrix("a").rows[1:], float)
    np.testing.assert_allclose(found, np.mean(cells, axis=0))
    assert seq.matrix("nowhere") is None


def test_the_files_hold_every_label_number_and_formula(comparison, tmp_path):
    files = write_comparison(comparison, tmp_path / "out", title="A & B")
    found = json.loads(files["json"].read_text())
    for summary, record in zip(comparison.labels, found["labels"], strict=True):
        assert record["label"] == summary.label
        assert len(record["runs"]) == len(summary.runs)
        for name in METRICS:
            spread = summary.measures[name]
            assert record["measures"][name] == (spread and vars(spread))
    page, text = files["html"].read_text(), files["md"].read_text()
    assert "<h1>A &amp; B</h1>" in page
    shown = [METRICS[name].formula for name in METRICS]
    for part in (*shown, MEASURES["horizon_steps"].formula, "lcia has no run with seed 1 order b"):
        assert part in text
        assert part in html.unescape(page)
    own, lcia = values(comparison, "lcia", "average_accuracy")
    cell = f"{np.mean(list(own.values())):.1f} ± {np.std(list(own.values()), ddof=1):.1f}"
    assert cell in page
    assert cell in text.replace("**", "")
    scores = lcia.matrix("a")
    assert f"R[3, 1] = {round(scores[3, 1], 2)} · {TASKS[0]}" in page


def test_the_page_asks_nobody_for_anything_and_is_always_the_same(comparison, tmp_path):
    files = [
        write_comparison(comparison, tmp_path / name, title="x")["html"].read_bytes()
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    page = files[0].decode()
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|url\((?!#)", page)
    outside = re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert outside == []
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_single_run_without_averages_has_a_page(tmp_path):
    write_run(tmp_path / "runs", "seq", method="sequential", tasks=("only",))
    comparison = compare(find_runs([tmp_path / "runs"])[0])
    page = write_comparison(comparison, tmp_path, title="one")["html"].read_text()
    assert "Balance weight β</h2>" not in page
    assert "paired by seed" not in page


def test_settings_that_differ_stand_beside_the_labels_that_have_them(tmp_path):
    grouping = {"grouping": {"groups": "similar", "threshold": 0.3}}
    write_run(tmp_path, "seq", method="sequential", settings={"rule": "release"}, begun=0)
    write_run(tmp_path, "t30", settings={"rule": {"name": "paper"}, **grouping}, begun=1)
    table = settings_table(compare(find_runs([tmp_path])[0]))
    columns = ("method.name", "rule.name", "grouping.groups", "grouping.threshold")
    assert table.columns == ("label", *columns)
    assert table.rows == (
        ("seq", "sequential", "release", "one", "0.9"),
        ("t30", "lcia", "paper", "similar", "0.3"),
    )


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


@pytest.mark.parametrize("name", ["results.jsonl", "results.jsonl.gz"])
def test_a_results_file_compares_like_the_runs_it_was_written_from(tmp_path, name):
    for label in ("lcia", "sequential"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", label, seed=seed, beta=0.9, begun=seed)
    runs, _ = find_runs([tmp_path / "runs"])
    (tmp_path / "study").mkdir()
    write_results(tmp_path / "study" / name, runs)
    for place in (tmp_path / "study", tmp_path / "study" / name):
        again, warnings = find_runs([place])
        assert warnings == []
        assert as_json(compare(again)) == as_json(compare(runs))
        assert [run.record for run in again] == [run.record for run in runs]
        assert all(run.steps() == () for run in again)


def test_a_line_that_is_no_result_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"label": "lcia"}\n')
    with pytest.raises(ConfigError, match=r"results.jsonl:1: has no 'run'; expected a line of"):
        find_runs([tmp_path])
    (tmp_path / "results.jsonl").rename(tmp_path / "results.jsonl.gz")
    with pytest.raises(ConfigError, match=r"results.jsonl.gz: expected what gzip writes"):
        find_runs([tmp_path])
