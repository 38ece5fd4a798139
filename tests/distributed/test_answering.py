"""Held-out samples are answered by all processes as one would, whatever happens meanwhile."""

import json
import sys
import time

import pytest
from tests.distributed.launching import HERE, run, torchrun
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.config import AssistantConfig
from lcia.learner import Store
from lcia.models.loading import content_hash

WATCHED = HERE / "watched_rank.py"


def write_stream(folder, model, tasks, **settings):
    entries = []
    for task in tasks:
        for split in ("train", "test"):
            records = [
                {"prompt": s.prompt, "completion": s.answers[0]} for s in getattr(task, split)
            ]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{task.name}-{split}.jsonl").write_text(lines)
        entries.append(
            {
                "name": task.name,
                "train": f"{task.name}-train.jsonl",
                "test": f"{task.name}-test.jsonl",
                "instruction": "first_line",
                "max_new_tokens": 4,
            }
        )
    training = {"num_train_epochs": 1, "learning_rate": 0.01, "per_device_train_batch_size": 2}
    tree = {
        "model": str(model),
        "dtype": "float32",
        "tasks": entries,
        "output": "out",
        "generation": {"batch_size": 2},
        "training": {**training, **settings},
    }
    (folder / "stream.yaml").write_text(json.dumps(tree))


def assistant(folder):
    return Store.open(folder / "out" / "lcia-seed0" / "assistant")


def asked(path):
    """Return what each process was asked: rank to prompts with the adapter that answered."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        found.setdefault(record["rank"], []).extend(map(tuple, record["asked"]))
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model, colours, shades, numbers):
    """A stream of three tasks and two groups that one process has learned."""
    folder = tmp_path_factory.mktemp("learned")
    write_stream(folder, tiny_model, [colours, shades, numbers])
    done = run([sys.executable, "-m", "lcia", "run", "stream.yaml"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_answer_as_one_does_each_a_part_and_one_prints(learned, tmp_path):
    recorded = assistant(learned).current.predictions()
    store = learned / "out" / "lcia-seed0" / "assistant"
    evaluate = ["eval", store, "--again", "--task-given", "--json"]
    one = run([sys.executable, "-m", "lcia", *map(str, evaluate)], learned)
    two = run(torchrun(WATCHED, tmp_path / "counts", "slow=0.3", "--", *evaluate), learned)
    assert two.returncode == 0, two.stderr[-3000:]
    assert json.loads(two.stdout) == json.loads(one.stdout), "one process prints, the same"
    counts = asked(tmp_path / "counts")
    assert set(counts) == {"0", "1"}
    each = [key for part in counts.values() for key in part]
    assert len(each) == 2 * len(recorded), "routed and given: each once"
    assert (store.parent / "assistant-logs" / "process-1.log").is_file()


def test_two_processes_learn_the_predictions_of_one(learned, tmp_path, tiny_model):
    """One step a task keeps training equal to one process's; the answers then are, too."""
    for file in learned.glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tree = json.loads((learned / "stream.yaml").read_text())
    tree["methods"] = ["zero_shot"]
    (tmp_path / "stream.yaml").write_text(json.dumps(tree))
    command = ["run", "stream.yaml"]
    one = run([sys.executable, "-m", "lcia", *command, "--set", "output=one"], tmp_path)
    assert one.returncode == 0, one.stderr[-3000:]
    two = run(torchrun(WATCHED, tmp_path / "counts", "slow=0.2", "--", *command), tmp_path)
    assert two.returncode == 0, two.stderr[-3000:]
    for name in ("predictions.jsonl", "task_given.jsonl"):
        expected, found = (
            (tmp_path / output / "zero_shot-seed0" / name).read_bytes() for output in ("one", "out")
        )
        assert found == expected
    assert set(asked(tmp_path / "counts")) == {"0", "1"}


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_what_ends_process_1_ends_the_answering_and_what_was_answered_is_kept(
    how, tmp_path, tiny_model, colours
):
    write_stream(tmp_path, tiny_model, [colours], save_steps=100)
    counts = [tmp_path / "before", tmp_path / "after"]
    command = ["--", "run", "stream.yaml"]
    failed = run(torchrun(WATCHED, counts[0], "slow=0.5", f"{how}=1", *command), tmp_path)
    ended = float((tmp_path / "before-ended").read_text())
    assert time.time() - ended < 15
    assert failed.returncode != 0
    said = {
        "raise": "Process 1 of 2: ValueError: the second batch is too much",
        "kill": "Process 1 of 2 ended without a word",
    }[how]
    assert failed.stderr.count(said) == 1
    done = run(torchrun(WATCHED, counts[1], *command), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = ([key for part in asked(path).values() for key in part] for path in counts)
    assert before, "something was answered before"
    assert not set(before) & set(after), "nothing is answered twice"
    store = assistant(tmp_path)
    assert store.verify() == []
    assert not list(store.root.rglob("*answers.jsonl"))


def test_one_process_that_is_killed_while_it_answers_goes_on_there(tmp_path, tiny_model, colours):
    write_stream(tmp_path, tiny_model, [colours], save_steps=100)
    counts = [tmp_path / "before", tmp_path / "after"]
    for path, how, code in ((counts[0], ["kill=0"], -9), (counts[1], [], 0)):
        command = [sys.executable, str(WATCHED), str(path), *how, "--", "run", "stream.yaml"]
        done = run(command, tmp_path)
        assert done.returncode == code, done.stderr[-3000:]
    before, after = (asked(path)["0"] for path in counts)
    assert len(before) == 2
    assert not set(before) & set(after)


def test_answering_and_scoring_may_take_longer_than_the_time_out_of_the_process_group(
    tmp_path, tiny_model, colours
):
    write_stream(tmp_path, tiny_model, [colours], ddp_timeout=5, ddp_backend="gloo")
    how = ["slow=6", "score=6"]  # each longer than the time-out, in one process at a time
    done = run(torchrun(WATCHED, tmp_path / "counts", *how, "--", "run", "stream.yaml"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = asked(tmp_path / "counts")
    assert set(counts) == {"0", "1"}
    assert len(assistant(tmp_path).history()) == 1


def test_a_verb_that_processes_cannot_share_is_refused_once(learned):
    store = learned / "out" / "lcia-seed0" / "assistant"
    done = run(torchrun("-m", "lcia", "groups", "merge", store, "g1", "g2"), learned)
    assert done.returncode != 0
    assert done.stderr.count("lcia groups works in one process, and a launcher started 2") == 1
    assert assistant(learned).current.number == 3


def test_an_error_before_processes_are_joined_is_told_whoever_has_it_first(tmp_path):
    done = run(torchrun("-m", "lcia", "run", "nowhere.yaml"), tmp_path)
    assert done.returncode != 0
    assert "nowhere.yaml: cannot be read" in done.stderr


def test_one_process_evaluates_what_several_learned_sharded(tmp_path, tiny_model):
    config = AssistantConfig(model=str(tiny_model), dtype="float32", training={"fsdp": True})
    Store.create(tmp_path / "store", config.resolved(), content_hash=content_hash(config.model))
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "store")])
    assert done.exception is None, done.output
