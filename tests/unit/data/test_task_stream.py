"""Tasks and the stream entries they come from."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lcia.data import (
    Message,
    Sample,
    SuperNIConfig,
    Task,
    TaskConfig,
    hold_out,
    load_stream,
    load_tasks,
)
from lcia.errors import ConfigError, DataError


def sample(i, prompt=None, **more):
    content = prompt or f"prompt {i}"
    turns = (Message(role="user", content=content),)
    return Sample(id=str(i), messages=turns, answers=(f"answer {i}",), **more)


TASK = Task(name="colours", train=(sample(1), sample(2)), test=(sample(3),))


def write(path, n, **more):
    rows = ({"prompt": f"{path.stem} {i}", "completion": str(i), **more} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "-x"])
def test_good_names(name):
    assert replace(TASK, name=name).name == name


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "..", "ä", "a\n"])
def test_bad_names(name):
    with pytest.raises(ConfigError, match=r"expected letters, digits, '\.', '_' or '-'"):
        replace(TASK, name=name)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_needs_both_splits(split):
    with pytest.raises(DataError, match=f"task 'colours' has no {split} sample"):
        replace(TASK, **{split: ()})


def test_fingerprint_depends_on_what_is_learned_and_scored():
    changed = [
        replace(TASK, train=TASK.train[:1]),
        replace(TASK, train=TASK.train[::-1]),
        replace(TASK, test=(sample(4),)),
        replace(TASK, test=(sample(3, instruction="Say"),)),
        replace(TASK, scorer="contains"),
        replace(TASK, instruction="last_line"),
        replace(TASK, instruction={"regex": "x"}),
        replace(TASK, max_new_tokens=7),
    ]
    prints = {task.fingerprint() for task in [TASK, *changed]}
    assert len(prints) == len(changed) + 1
    renamed = replace(TASK, name="other", test=(replace(TASK.test[0], id="z"),))
    assert renamed.fingerprint() == TASK.fingerprint()


def test_fingerprint_is_the_same_in_every_process():
    code = (
        "from lcia.data import *\n"
        "s = Sample(id='1', messages=(Message(role='user', content='q'),), answers=('a', 'ä'))\n"
        "t = Task(name='t', train=(s,), test=(s,), instruction={'b': 1, 'a': 2})\n"
        "print(t.fingerprint())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    # sha256 of the canonical JSON, written out by hand:
    # {"instruction":{"a":2,"b":1},"max_new_tokens":32,"scorer":"exact_match",
    #  "test":[[[["user","q"]],["a","\u00e4"],null]],"train":[...the same...]}
    assert outputs == {"dc8cf94214109f09c3e42033a7ed37e415a64ce122ea23e13f0f875596f7b50e\n"}


def test_files_become_tasks_relative_to_the_stream(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    write(tmp_path / "train.jsonl", 6, instruction="Count.")
    write(tmp_path / "test.jsonl", 4)
    entry = TaskConfig(name="t", train="train.jsonl", test="test.jsonl", max_train=3, max_test=2)
    (task,) = load_tasks([entry], base=tmp_path)
    assert (len(task.train), len(task.test)) == (3, 2)
    assert (task.instruction, task.scorer, task.max_new_tokens) == ("field", "exact_match", 32)
    assert [int(s.id) for s in task.train] == sorted(int(s.id) for s in task.train)
    assert load_tasks([entry], base=tmp_path) == (task,)


def test_the_instruction_is_inferred_where_the_data_name_none(tmp_path):
    write(tmp_path / "train.jsonl", 10)
    entries = [
        TaskConfig(name="a", train="train.jsonl"),
        TaskConfig(name="b", train="train.jsonl", instruction="last_line"),
    ]
    assert [t.instruction for t in load_tasks(entries, base=tmp_path)] == ["infer", "last_line"]


def test_test_samples_are_held_out_of_one_file(tmp_path):
    write(tmp_path / "all.jsonl", 50)
    (task,) = load_tasks([TaskConfig(name="t", train="all.jsonl")], base=tmp_path)
    ids = {s.id for s in task.train} | {s.id for s in task.test}
    assert (len(task.train), len(task.test), len(ids)) == (40, 10, 50)


def test_too_few_samples_to_hold_out(tmp_path):
    write(tmp_path / "all.jsonl", 4)
    with pytest.raises(DataError, match=r"all\.jsonl: 4 samples are too few .* task 't' a test"):
        load_tasks([TaskConfig(name="t", train="all.jsonl")], base=tmp_path)


def test_samples_all_alike_are_not_called_too_few(tmp_path):
    lines = [json.dumps({"prompt": "Say a.", "completion": "a"})] * 10
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"none of 10 samples can be held out: a fifth is 2, each"):
        load_tasks([TaskConfig(name="t", train="all.jsonl")], base=tmp_path)
    (tmp_path / "all.jsonl").write_text(lines[0])
    with pytest.raises(DataError, match=r"1 sample is too few to hold out"):
        load_tasks([TaskConfig(name="t", train="all.jsonl")], base=tmp_path)


@pytest.mark.parametrize(
    ("limits", "sizes"), [({}, (500, 100)), ({"max_train": 50, "max_test": 9}, (50, 9))]
)
def test_superni_is_split(tmp_path, limits, sizes):
    instances = [{"input": f"i{i}", "output": [f"o{i}"]} for i in range(650)]
    task = {"Definition": ["Do."], "Instances": instances}
    (tmp_path / "t.json").write_text(json.dumps(task), encoding="utf-8")
    (task,) = load_tasks([TaskConfig(name="t", superni="t.json", **limits)], base=tmp_path)
    assert (len(task.train), len(task.test)) == sizes
    assert not {s.prompt for s in task.train} & {s.prompt for s in task.test}
    assert task.instruction == "field"


@given(
    st.lists(st.sampled_from("abcdefghijkl"), max_size=60),
    st.integers(min_value=1, max_value=20),
    st.integers(min_value=0, max_value=3),
)
def test_hold_out_parts_are_disjoint_and_complete(prompts, at_most, seed):
    samples = [sample(i, prompt) for i, prompt in enumerate(prompts)]
    train, test = hold_out(samples, at_most=at_most, seed=seed)
    assert sorted((*train, *test), key=lambda s: int(s.id)) == samples
    assert not {s.prompt for s in train} & {s.prompt for s in test}
    assert len(test) <= min(at_most, len(samples) // 5)


def test_an_overlap_of_given_files_is_said(tmp_path, caplog):
    write(tmp_path / "train.jsonl", 5)
    load_tasks([TaskConfig(name="t", train="train.jsonl", test="train.jsonl")], base=tmp_path)
    assert "task 't': 5 of 5 test prompts are also in train" in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "t"}, "expected either train or superni"),
        ({"name": "t", "train": "a", "superni": "b"}, "expected either train or superni"),
        ({"name": "t", "superni": "a", "test": "b"}, "superni stands without test and format"),
        ({"name": "t", "train": "a", "max_train": 0}, "greater than or equal to 1"),
        ({"name": "t", "train": "a", "trian": "b"}, "Extra inputs are not permitted"),
        ({"name": "a b", "train": "a"}, "expected letters, digits"),
    ],
)
def test_wrong_entries(entry, message):
    with pytest.raises(ValidationError, match=message):
        TaskConfig(**entry)


def test_wrong_streams():
    entry = TaskConfig(name="t", train="a")
    with pytest.raises(ConfigError, match="is empty; expected at least one task"):
        load_tasks([])
    with pytest.raises(ConfigError, match="two are named 't'"):
        load_tasks([entry, entry])
    with pytest.raises(ConfigError, match="expected builtin:NAME"):
        load_stream("skills")
    with pytest.raises(ConfigError, match=r"'skils' is not one of the streams.*Nearest: skills"):
        load_stream("builtin:skils")


def test_paths_may_begin_with_a_variable_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "a.jsonl", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LCIA_FILES", "files")
    entry = TaskConfig(name="a", train="${LCIA_FILES}/a.jsonl")
    (task,) = load_tasks([entry], base=tmp_path / "elsewhere")
    assert len(task.train) + len(task.test) == 10


def test_a_variable_that_is_not_set_is_one_line_with_what_to_put_there(tmp_path, monkeypatch):
    monkeypatch.delenv("LCIA_FILES", raising=False)
    entry = TaskConfig(name="a", superni="${LCIA_FILES}/task1.json")
    with pytest.raises(
        ConfigError,
        match=r"task 'a': superni is '\$\{LCIA_FILES\}/task1.json', but the environment variable "
        r"LCIA_FILES is not set. Set it to the folder that holds 'task1.json', for example: "
        r"export LCIA_FILES=/path/to/folder$",
    ):
        load_tasks([entry], base=tmp_path)


TASKS = {
    "task2_capital_generation": ("Question Answering", lambda i: [f"town {i}", f"city {i}"]),
    "task10_mood_classification": ("Sentiment Analysis", lambda i: [("good", "bad")[i % 2]]),
    "task11_topic_classification": ("Text Categorization", lambda i: [("a", "b", "c")[i % 3]]),
}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name, (category, outputs) in TASKS.items():
        tree = {
            "Categories": [category],
            "Definition": [f"Definition of {name}."],
            "Instances": [
                {"id": f"{name}-{i}", "input": f"input {i}", "output": outputs(i)}
                for i in range(700)
            ],
        }
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(tree))
    (tmp_path / "tasks" / "README.md").write_text("not a task")
    (tmp_path / "splits" / "default").mkdir(parents=True)
    listed = "task10_mood_classification\ntask11_topic_classification\ntask999_gone\n"
    (tmp_path / "splits" / "default" / "train_tasks.txt").write_text(listed)
    return tmp_path


def names(checkout, **settings):
    return [entry.name for entry in SuperNIConfig(root=checkout, **settings).entries()]


def test_all_tasks_come_by_number_in_citbs_protocol(checkout):
    tasks = load_tasks(SuperNIConfig(root=checkout).entries())
    assert [task.name for task in tasks] == list(TASKS)
    assert {(len(task.train), len(task.test)) for task in tasks} == {(500, 100)}
    assert [task.scorer for task in tasks] == ["rougeL", "exact_match", "exact_match"]
    for task in tasks:
        assert not {s.prompt for s in task.train} & {s.prompt for s in task.test}
        assert task.train[0].instruction == f"Definition of {task.name}."


def test_a_folder_of_task_files_is_a_checkout_too(checkout):
    assert names(checkout / "tasks") == list(TASKS)


def test_tasks_are_named_in_full_or_by_number_in_their_order(checkout):
    chosen = ["task11", "task2_capital_generation.json"]
    assert names(checkout, tasks=chosen) == [
        "task11_topic_classification",
        "task2_capital_generation",
    ]


def test_split_categories_and_count_narrow_down(checkout):
    both = ["task10_mood_classification", "task11_topic_classification"]
    assert names(checkout, split="default/train_tasks") == both
    assert names(checkout, split="default/train_tasks.txt", categories=["Text Categorization"]) == [
        "task11_topic_classification"
    ]
    drawn = [tuple(names(checkout, max_tasks=2, seed=seed)) for seed in range(20)]
    assert drawn == [tuple(names(checkout, max_tasks=2, seed=seed)) for seed in range(20)]
    assert {len(chosen) for chosen in drawn} == {2}
    assert len(set(drawn)) == 3
    assert all(list(chosen) == [name for name in TASKS if name in chosen] for chosen in drawn)


def test_fewer_samples_on_request(checkout):
    config = SuperNIConfig(root=checkout, tasks=["task2"], max_train=30, max_test=7)
    (task,) = load_tasks(config.entries())
    assert (len(task.train), len(task.test), task.max_new_tokens) == (30, 7, 128)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tasks": ["task10_mood_clasification"]}, "Nearest: task10_mood_classification"),
        ({"split": "default/train"}, "train.txt is not there. Nearest: default/train_tasks"),
        ({"categories": ["Sentiment"]}, "Nearest: Sentiment Analysis"),
        ({"tasks": ["task2"], "split": "default/train_tasks"}, "no task of .* is left"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(checkout, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        names(checkout, **settings)


def test_a_folder_without_tasks_or_a_broken_task_is_one_line(checkout, tmp_path):
    with pytest.raises(DataError, match=r"holds no task\*\.json\. Expected a checkout"):
        names(tmp_path / "splits")
    (checkout / "tasks" / "task3_x.json").write_text("[")
    with pytest.raises(DataError, match=r"task3_x\.json: is not a Super-NaturalInstructions task"):
        names(checkout, categories=["Sentiment Analysis"])


def test_a_relative_root_starts_at_the_base(checkout):
    config = SuperNIConfig(root=checkout.name, tasks=["task2"])
    (entry,) = config.entries(base=checkout.parent)
    assert entry.superni == checkout / "tasks" / "task2_capital_generation.json"
