"""The short way: create, learn a file, ask, open again."""

import json

import pytest

from lcia import Assistant
from lcia.data import Message
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


def test_records_are_learned_as_a_file_of_them_is(assistant, tiny_model, tmp_path, files):
    tables = {
        name: [json.loads(line) for line in path.read_text().splitlines()]
        for name, path in files.items()
    }
    settings = {"dtype": "float32", "training": {"num_train_epochs": 1, "learning_rate": 1e-2}}
    other = Assistant.create(tmp_path / "b", model=str(tiny_model), **settings)
    for name, records in tables.items():
        other.learn(iter(records), name=name, instruction="first_line", max_new_tokens=4)
    for path in assistant.store.current.adapters["g1"][1].glob("*.safetensors"):
        twin = other.store.current.adapters["g1"][1] / path.name
        assert twin.read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="no name"):
        other.learn(tables["colours"])
    with pytest.raises(DataError, match=r"^train\.jsonl: record 2: is no JSON"):
        other.learn([{"prompt": "a", "completion": "b"}, {"prompt": {1, 2}}], name="bad")
    with pytest.raises(DataError, match=r"^test\.jsonl"):
        other.learn(tables["colours"], name="bad", test=[{"prompt": "a"}])
    assert other.versions() == [0, 1, 2]


def test_a_data_set_of_datasets_is_records(assistant):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"Spell it.\n\n{i}", "reply": f"n{i}"} for i in range(12)]
    columns = {"prompt": "question", "answer": "reply"}
    outcome = assistant.learn(datasets.Dataset.from_list(rows), name="spelt", map=columns)
    assert outcome.version == 3 and set(outcome.scores) == {"colours", "numbers", "spelt"}


def test_prompts_are_texts_or_turns_of_any_kind(assistant):
    words = "Write this number as a digit.\n\nnine"
    told = assistant.answer(words, max_new_tokens=3)
    for prompt in (
        [Message(role="user", content=words)],
        [{"role": "user", "content": words}],
        ({"role": "user", "content": [{"type": "text", "text": words}]},),
    ):
        assert assistant.answer(prompt, max_new_tokens=3) == told
    assert assistant.answer("", max_new_tokens=3).group is not None
    for prompt, named in [
        ("\ud800", "half a surrogate pair"),
        (3, "is 3; expected a list of role and content"),
        (["a", "b"], r"prompt\[0\] is 'a'; expected an object"),
        ([{"role": "robot", "content": "x"}], "role is 'robot'"),
        ([{"role": "assistant", "content": "x"}], "has to be the user's"),
    ]:
        with pytest.raises(ConfigError, match=named):
            assistant.answer(prompt)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        assistant.answer(words, max_new_tokens=0)


def test_going_back_brings_the_earlier_answers(assistant):
    assistant.rollback(1)
    assert assistant.answer("Write this number as a digit.\n\nnine").group == "g1"
    assistant.rollback(2)
    assert assistant.answer("Write this number as a digit.\n\nnine").group == "g2"


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
