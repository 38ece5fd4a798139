"""The short way: create, learn a file, ask, open again."""

import json

import pytest

from lcia import Assistant
from lcia.errors import ConfigError, DataError
from lcia.reports.collect import report_of, routing_shares
from lcia.reports.html import render


@pytest.fixture
def files(tmp_path, colours, numbers):
    """Two data files: prompts with their answers."""
    paths = {}
    for task in (colours, numbers):
        paths[task.name] = tmp_path / f"{task.name}.jsonl"
        with paths[task.name].open("w") as file:
            for sample in task.train:
                record = {"prompt": sample.prompt, "completion": sample.answers[0]}
                file.write(json.dumps(record) + "\n")
    return paths


@pytest.fixture
def assistant(tiny_model, tmp_path, files):
    settings = {"dtype": "float32", "training": {"num_train_epochs": 1, "learning_rate": 1e-2}}
    assistant = Assistant.create(tmp_path / "a", model=str(tiny_model), **settings)
    for name, path in files.items():
        assistant.learn(path, name=name, instruction="first_line", max_new_tokens=4)
    return assistant


def test_answers_say_which_group_answered_and_why(assistant):
    answers = assistant.answer_many(
        ["Write this number as a digit.\n\nnine", "Say the letter of the colour.\n\npink"],
        max_new_tokens=3,
    )
    assert [(a.group, a.reason, a.similarity) for a in answers] == [
        ("g2", "reached", 1.0),
        ("g1", "reached", 1.0),
    ]
    assert assistant.answer("Sing.\n\nla", max_new_tokens=3).reason == "below_nearest"


def test_an_assistant_opened_again_gives_the_same_answers(assistant):
    prompt = "Write this number as a digit.\n\nnine"
    again = Assistant.open(assistant.store.root)
    assert again.answer(prompt) == assistant.answer(prompt)
    assert again.metrics == assistant.metrics


def test_a_damaged_file_leaves_the_assistant_as_it_was(assistant, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        assistant.learn(tmp_path / "bad.jsonl", name="bad")
    with pytest.raises(ConfigError, match=r"Nearest: exact_match"):
        assistant.learn(tmp_path / "colours.jsonl", name="again", scorer="exactmatch")
    assert assistant.store.versions() == [0, 1, 2]


def test_a_report_shows_what_the_store_holds(assistant):
    version = assistant.store.current
    assert routing_shares(version) == {"colours": {"g1": 1.0}, "numbers": {"g2": 1.0}}
    page = render(report_of({"lcia": assistant.store}, title="mine"))
    for text in ("mine", "colours", "numbers", "Say the letter of the colour.", "g2"):
        assert text in page
