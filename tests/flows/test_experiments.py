"""Experiments through the Python API: what they write, what they skip, what they survive."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from statistics import fmean

import pytest
import torch
import yaml
from filelock import FileLock

from flows.conftest import write_jsonl
from lcia.config import load_stream_config
from lcia.errors import ConfigError, TrainingError
from lcia.experiments.running import check_experiment, run_experiment
from lcia.learner import Store, learning
from lcia.methods.baselines import Sequential


def edit(stream, **changes):
    tree = yaml.safe_load(stream.read_text())
    stream.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))


def two_tasks(stream, **changes):
    """Leave the stream its first two tasks, of one instruction, and two steps for each."""
    tasks = yaml.safe_load(stream.read_text())["tasks"][:2]
    edit(stream, tasks=tasks, training={"max_steps": 2, "learning_rate": 0.01}, **changes)


def run(stream, **options):
    return run_experiment(load_stream_config(stream), base=stream.parent, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def mean(values):
    values = list(values)
    return None if None in values or not values else fmean(values)


def by_hand(rows):
    """The metrics of DESIGN section 6, written down again; rows[t][i], tasks from 0."""
    last = len(rows) - 1
    final, tasks = rows[last], range(last)
    earlier = [i for i in tasks if i + 1 < last]
    return {
        "average_accuracy": mean(final[i] for i in tasks),
        "forgetting": mean(max(rows[j][i] for j in range(i + 1, last)) - final[i] for i in earlier),
        "new_accuracy": mean(rows[i + 1][i] for i in tasks),
        "backward_transfer": mean(final[i] - rows[i + 1][i] for i in earlier),
        "forward_transfer": mean(rows[i][i] - rows[0][i] for i in tasks if i > 0),
        "mean_average_accuracy": mean(mean(rows[t][:t]) for t in range(1, last + 1)),
    }


@pytest.fixture
def guarded(stream, tmp_path, numbers):
    """The stream with a held-out task."""
    write_jsonl(tmp_path / "guard.jsonl", numbers.train)
    guard = {"name": "guard", "train": "guard.jsonl", "instruction": "first_line"}
    edit(stream, held_out=[{**guard, "max_new_tokens": 3}])
    return stream


def test_every_number_can_be_computed_again_from_predictions_and_journal(guarded, tmp_path):
    edit(
        guarded,
        methods=[{"name": "lcia", "old_weight": 0.0, "remembered": 0, "rule": "release"}],
        seed=3,
    )
    (result,) = run(guarded).results
    found = json.loads((result.folder / "metrics.json").read_text())
    predictions = lines(result.folder / "predictions.jsonl")
    tasks = found["tasks"]
    assert tasks == ["colours", "shades", "numbers"]
    rows = found["matrix"]["rows"]
    assert len({(p["t"], p["task"], p["sample"]) for p in predictions}) == len(predictions)
    for t, row in enumerate(rows):
        for i, task in enumerate(tasks):
            scores = [p["score"] for p in predictions if (p["t"], p["task"]) == (t, task)]
            assert (row[i] is None) == (not scores)
            assert scores == [] or row[i] == pytest.approx(100 * fmean(scores), abs=1e-12)
    for p in predictions:
        assert p["score"] == float(p["prediction"].lower() in [a.lower() for a in p["answers"]])
    for name, value in by_hand(rows).items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-12)

    last = [p for p in predictions if p["t"] == len(tasks)]
    learned_by = {"colours": "g1", "shades": "g1", "numbers": "g2"}
    right = fmean(p["group"] == learned_by[p["task"]] for p in last)
    assert found["metrics"]["routing_accuracy"] == pytest.approx(100 * right)

    given = lines(result.folder / "task_given.jsonl")
    assert {(p["task"], p["group"]) for p in given} == set(learned_by.items())
    means = [fmean(p["score"] for p in given if p["task"] == task) for task in tasks]
    assert found["metrics"]["task_given_accuracy"] == pytest.approx(100 * fmean(means))

    held_out = {
        model: lines(result.folder / f"held_out-{model}.jsonl") for model in ("base", "assistant")
    }
    assert {p["group"] for p in held_out["base"]} == {None}
    assert {p["group"] for p in held_out["assistant"]} == {"g2"}
    scores = {k: 100 * fmean(p["score"] for p in v) for k, v in held_out.items()}
    assert found["held_out"] == {model: {"guard": score} for model, score in scores.items()}
    delta = scores["assistant"] - scores["base"]
    assert found["metrics"]["general_ability"] == pytest.approx(delta, abs=1e-12)

    steps = [e for e in lines(result.folder / "journal.jsonl") if e["event"] == "step"]
    averaged = [e for e in steps if "ema/beta_mean" in e]
    assert {e["task"] for e in averaged} == {"shades"}  # the only task that retrains a group
    beta = fmean(e["ema/beta_mean"] for e in averaged)
    fallen = fmean(
        math.fsum(v for k, v in e.items() if k.startswith("ema/fallback/")) for e in averaged
    )
    metrics = result.metrics
    assert metrics["steps_per_task"] == len(steps) / 3 == 4  # 16 samples, batches of 8, 2 epochs
    assert metrics["beta_mean"] == pytest.approx(beta)
    assert metrics["horizon_steps"] == pytest.approx(1 / (1 - beta))
    assert metrics["fallback_share"] == pytest.approx(100 * fallen)
    # r = 8 on q, k, v, o, gate, up and down of two layers: r times inputs plus outputs.
    sides = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    adapter = 2 * sum(8 * (a + b) for a, b in sides)
    assert metrics["trainable_parameters"] == adapter
    assert metrics["stored_parameters"] == 2 * adapter
    assert metrics["groups"] == 2


def test_what_a_method_keeps_is_counted(stream):
    two_tasks(stream, methods=["zero_shot", "replay", "sequential"])
    found = {result.label: result.metrics for result in run(stream).results}
    assert found["zero_shot"]["stored_parameters"] == found["zero_shot"]["steps_per_task"] == 0
    assert found["replay"]["stored_samples"] > 0 == found["sequential"]["stored_samples"]


def test_rules_and_overrides_reach_the_runs_and_what_is_done_is_skipped(stream, tmp_path):
    two_tasks(
        stream,
        methods=["sequential", {"name": "lcia", "label": "one", "grouping": "off"}],
        rules=["release", {"name": "fixed", "beta": 0.5, "label": "half"}],
        orders={"there": ["colours", "shades"], "back": ["shades", "colours"]},
    )
    told = []
    names = [
        *("sequential-seed0-there", "sequential-seed0-back"),
        *("one-release-seed0-there", "one-release-seed0-back"),
        *("one-half-seed0-there", "one-half-seed0-back"),
    ]
    done = run(stream, finished=told.append)
    assert [result.folder.name for result in told] == names
    assert done.failures == {}
    assert [e for r in done.results for e in [r.metrics["groups"]]] == [1] * 6
    half = Store.open(tmp_path / "out" / "one-half-seed0-back" / "assistant")
    assert half.config.rule == {"name": "fixed", "beta": 0.5}
    assert next(iter(half.current.manifest["tasks"])) == "shades"
    betas = [
        e["ema/beta_mean"]
        for e in lines(tmp_path / "out" / "one-half-seed0-back" / "journal.jsonl")
        if "ema/beta_mean" in e
    ]
    assert betas
    assert set(betas) == {0.5}
    again = []
    assert run(stream, finished=again.append).results == done.results
    assert again == []


def test_all_tasks_at_once_have_one_order(stream):
    orders = {"there": ["colours", "shades"], "back": ["shades", "colours"]}
    two_tasks(stream, methods=["single", "multitask"], orders=orders, seeds=[0, 1])
    planned = check_experiment(load_stream_config(stream), base=stream.parent)
    assert [sub.folder.name for sub in planned] == [
        *(f"single-seed{seed}-{order}" for seed in (0, 1) for order in orders),
        *("multitask-seed0-there", "multitask-seed1-there"),
    ]


def test_a_run_that_fails_leaves_the_others_and_continues_later(stream, monkeypatch):
    two_tasks(stream, methods=["sequential", "lcia"])
    plain = learning.train_adapter

    def fails(host, task, *, method, **options):
        if isinstance(method, Sequential) and task.name == "shades":
            raise TrainingError("the loss is nan")
        return plain(host, task, method=method, **options)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "train_adapter", fails)
        done = run(stream)
    assert [result.label for result in done.results] == ["lcia"]
    assert str(done.failures["sequential-seed0"]) == "the loss is nan"
    told = []
    done = run(stream, finished=told.append)
    assert [result.label for result in done.results] == ["sequential", "lcia"]
    assert [result.label for result in told] == ["sequential"]


SHORTAGES = {
    "of the machine": lambda: bytearray(1 << 60),
    "of torch on the CPU": lambda: torch.empty(1 << 60),
    "of a device": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore")),
    "of the system": lambda: _raise(OSError(errno.ENOMEM, "Cannot allocate memory")),
}


def _raise(error):
    raise error


@pytest.mark.parametrize("kind", SHORTAGES)
@pytest.mark.parametrize("when", ["samples", "remember", "attach"])
def test_memory_that_runs_out_in_one_run_leaves_the_others(stream, monkeypatch, kind, when):
    two_tasks(stream, methods=["sequential", "l2"])

    def short(self, *arguments):
        SHORTAGES[kind]()

    with monkeypatch.context() as patch:
        patch.setattr(Sequential, when, short)
        done = run(stream)
    assert [result.label for result in done.results] == ["l2"]
    (line,) = map(str, done.failures.values())
    assert line.startswith("out of memory: ")
    assert len(line.splitlines()) == 1
    assert done.failures["sequential-seed0"].__traceback__ is None, "nothing holds the model"
    done = run(stream)
    assert [result.label for result in done.results] == ["sequential", "l2"]


def test_memory_that_runs_out_ends_the_command_with_the_run_s_name(lcia, stream, monkeypatch):
    two_tasks(stream, methods=["sequential", "l2"])
    short = SHORTAGES["of torch on the CPU"]
    monkeypatch.setattr(Sequential, "samples", lambda self, context: short())
    done = lcia("run", stream)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()[-2:]
    assert first.startswith("sequential-seed0: out of memory: ")
    assert "can't allocate memory" in first
    assert last.startswith("1 of 2 runs failed")


def test_runs_side_by_side_share_the_work(lcia, stream, tmp_path):
    two_tasks(stream, methods=["sequential", "single"])
    taken = tmp_path / "out" / "sequential-seed0"
    taken.mkdir(parents=True)
    with FileLock(taken / ".lock"):  # as a process that works on it does
        output = lcia("run", stream).stdout
    assert "Other processes are working on: sequential-seed0." in output
    assert [path.name for path in taken.iterdir()] == [".lock"]
    written = (tmp_path / "out" / "single-seed0" / "metrics.json").stat().st_mtime_ns
    done = run(stream)
    assert [result.label for result in done.results] == ["sequential", "single"]
    assert not done.elsewhere
    assert (tmp_path / "out" / "single-seed0" / "metrics.json").stat().st_mtime_ns == written


def test_killed_between_learning_and_the_result_it_ends_the_same(guarded, tmp_path):
    two_tasks(guarded, methods=["sequential"])
    (result,) = run(guarded).results
    files = {path.name: path.read_bytes() for path in result.folder.glob("*.json*")}
    for name in ("metrics.json", "journal.jsonl", "held_out-assistant.jsonl", "task_given.jsonl"):
        (result.folder / name).unlink()
    told = []
    run(guarded, finished=told.append)
    assert [again.folder for again in told] == [result.folder]
    assert {path.name: path.read_bytes() for path in result.folder.glob("*.json*")} == files


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"held_out": [{"name": "colours", "train": "colours-train.jsonl"}]}, "held_out: colours"),
        ({"held_out": [{"name": "x", "train": "nothing.jsonl"}]}, r"nothing\.jsonl"),
        ({"held_out": "builtin:skils"}, "Nearest: skills"),
    ],
)
def test_held_out_tasks_are_checked_before_anything_runs(stream, tmp_path, changes, expected):
    edit(stream, **changes)
    with pytest.raises((ConfigError, OSError, ValueError), match=expected):
        run(stream)
    assert not (tmp_path / "out").exists()


def test_a_folder_begun_with_other_held_out_tasks_is_refused(guarded):
    two_tasks(guarded, methods=["sequential"])
    run(guarded)
    edit(guarded, held_out=None)
    with pytest.raises(ConfigError, match=r"was begun with held_out\.guard"):
        run(guarded)


def test_runs_are_compared_paired_and_written(lcia, fails, stream, tmp_path):
    two_tasks(stream, methods=["sequential", "lcia"], seeds=[0, 1])
    assert lcia("run", stream).returncode == 0
    done = lcia("compare", tmp_path / "out", "-o", tmp_path / "tables")
    assert done.returncode == 0, done.stderr
    for text in ("Differences from sequential", "Forg. ratio", "mean over i of R[T, i]"):
        assert text in done.stdout
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        *("compare.md", "compare.json", "compare.html")
    }
    found = json.loads(lcia("compare", tmp_path / "out", "--baseline", "lcia", "--json").stdout)
    assert found["baseline"] == "lcia"
    assert [label["label"] for label in found["labels"]] == ["sequential", "lcia"]
    own = [
        json.loads((tmp_path / f"out/{label}-seed{seed}/metrics.json").read_text())["metrics"]
        for label in ("sequential", "lcia")
        for seed in (0, 1)
    ]
    scores = [metrics["average_accuracy"] for metrics in own]
    difference = found["labels"][0]["differences"]["average_accuracy"]
    assert difference["mean"] == pytest.approx(fmean(scores[:2]) - fmean(scores[2:]))
    assert difference["n"] == 2
    assert "Nearest: lcia" in fails("compare", tmp_path / "out", "--baseline", "lcis")
    assert "no finished run there" in fails("compare", tmp_path / "nowhere")


def adapters_of(root):
    current = Store.open(root).current
    return {
        group: (folder / "adapter_model.safetensors").read_bytes()
        for group, (_, folder) in current.adapters.items()
    }


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "lcia", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_kill_dash_nine_in_the_second_task_and_run_again(stream, tmp_path):
    settings = ["--set", "training.num_train_epochs=40"]
    straight = start("run", stream, *settings, "--set", "output=straight")
    process = start("run", stream, *settings)
    assistant = tmp_path / "out" / "lcia-seed0" / "assistant"
    deadline = time.monotonic() + 300
    while not list(assistant.glob("runs/0002-shades/checkpoints/*/complete.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Store.open(assistant).current.number == 1
    assert not (tmp_path / "out" / "lcia-seed0" / "metrics.json").exists()

    assert start("run", stream, *settings).wait(timeout=300) == 0
    assert straight.wait(timeout=300) == 0
    expected = adapters_of(tmp_path / "straight" / "lcia-seed0" / "assistant")
    assert adapters_of(assistant) == expected
