"""Each format: what it becomes in memory, and the message for each way to get a record wrong."""

import json

import pytest

from lcia.data import Message, Sample, read
from lcia.errors import DataError
from lcia.evaluation.scorers import vqa_accuracy
from lcia.registry import READERS

USER = {"role": "user", "content": "Say hello."}
ANSWER = {"role": "assistant", "content": "Hello!"}
PROMPT = (Message(role="user", content="Say hello."),)
HELLO = Sample(id="1", messages=PROMPT, answers=("Hello!",))
WITH_INSTRUCTION = Sample(id="1", messages=PROMPT, answers=("Hello!",), instruction="Say")

GOOD = {
    "messages": {"messages": [USER, ANSWER]},
    "prompt_completion": {"prompt": "Say hello.", "completion": "Hello!"},
    "alpaca": {"instruction": "Say hello.", "input": "", "output": "Hello!"},
    "superni": {"Definition": ["Say."], "Instances": [{"input": "hello", "output": ["Hello!"]}]},
    "llava": {
        "conversations": [
            {"from": "human", "value": "Say hello."},
            {"from": "gpt", "value": "Hello!"},
        ]
    },
    "llava_test": {"question_id": 1, "text": "Say hello.", "answer": "Hello!"},
    "preference": {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."},
    "cl_benchmark": {"sentence": "Say hello.", "label": "Hello!"},
}


def write(folder, value, name="data.jsonl"):
    path = folder / name
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    return path


def problem(folder, value):
    with pytest.raises(DataError) as caught:
        read(write(folder, value))
    return str(caught.value).removeprefix(f"{folder / 'data.jsonl'}")


@pytest.mark.parametrize("format", READERS.names())
def test_every_reader_reads_and_recognises_its_format(tmp_path, format):
    folder = tmp_path / "SC" / "greetings"
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text('["Hello!", "Bye!"]')
    path = write(folder, GOOD[format])
    samples = read(path)
    assert samples == read(path, format=format)
    assert [sample.answers for sample in samples] == [("Hello!",)]
    assert "hello" in samples[0].prompt


@pytest.mark.parametrize(
    ("record", "sample"),
    [
        ({"messages": [USER, ANSWER]}, HELLO),
        ({"messages": [USER, ANSWER], "instruction": "Say"}, WITH_INSTRUCTION),
        ({"messages": [USER], "answers": ["Hello!"]}, HELLO),
        ({"prompt": "Say hello.", "completion": "Hello!"}, HELLO),
        ({"prompt": [USER], "completion": [ANSWER]}, HELLO),
        ({"prompt": "Say hello.", "completion": "Hello!", "instruction": "Say"}, WITH_INSTRUCTION),
        ({"prompt": "Say hello.", "answers": ["Hello!"]}, HELLO),
    ],
)
def test_the_same_sample_in_many_shapes(tmp_path, record, sample):
    assert read(write(tmp_path, record)) == [sample]


VOTES = ["red"] * 8 + ["blue"] * 2


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Colour?", "answers": VOTES},
        {"prompt": "Colour?", "completion": VOTES},
        {"prompt": "Colour?", "completion": "red", "answers": VOTES},
        {"prompt": "Colour?", "completion": [{"role": "assistant", "content": "red"}],
         "answers": VOTES},
        {"messages": [USER, {"role": "assistant", "content": "red"}], "answers": VOTES},
        {"messages": [USER], "answers": VOTES},
        {"instruction": "Colour?", "output": VOTES},
    ],
)  # fmt: skip
def test_repeated_answers_are_votes(tmp_path, record):
    answers = read(write(tmp_path, record))[0].answers
    assert sorted(answers) == sorted(VOTES)
    assert answers[0] == "red"
    assert vqa_accuracy("red", answers) == 1.0
    assert vqa_accuracy("blue", answers) == pytest.approx(0.6)


def test_what_is_trained_on_stands_first_and_once_among_the_answers(tmp_path):
    record = {"prompt": "Say hello.", "completion": ["Hi", "Hello!"], "answers": ["Hi", "Hey"]}
    assert read(write(tmp_path, record))[0].answers == ("Hi", "Hello!", "Hey")
    record = {"messages": [USER, ANSWER], "answers": ["Hi", "Hello!"]}
    assert read(write(tmp_path, record))[0].answers == ("Hello!", "Hi")


def test_only_the_last_assistant_turn_is_the_answer(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    record = {"messages": [system, USER, ANSWER, {"role": "user", "content": "Again."}, ANSWER]}
    sample = read(write(tmp_path, record))[0]
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "user"]
    assert sample.prompt == "Again."


def test_alpaca_joins_instruction_and_input_and_keeps_the_instruction(tmp_path):
    record = {"instruction": "Translate to German.", "input": "cat", "output": ["Katze", "Kater"]}
    assert read(write(tmp_path, [record, {**record, "input": None}], "data.json")) == [
        Sample(
            id="1",
            messages=(Message(role="user", content="Translate to German.\n\ncat"),),
            answers=("Katze", "Kater"),
            instruction="Translate to German.",
        ),
        Sample(
            id="2",
            messages=(Message(role="user", content="Translate to German."),),
            answers=("Katze", "Kater"),
            instruction="Translate to German.",
        ),
    ]


def test_superni_joins_definition_and_input(tmp_path):
    task = {
        "Definition": [" Name the colour. "],
        "Instances": [{"id": "t-1", "input": "grass", "output": ["green", "Green"]}],
    }
    for name, text in (("a.json", json.dumps(task)), ("b.json", json.dumps(task, indent=1))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (sample,) = read(tmp_path / name)
        assert sample.id == "t-1"
        assert sample.prompt == "Name the colour.\n\ngrass"
        assert sample.instruction == "Name the colour."
        assert sample.answers == ("green", "Green")


def test_roles_are_mapped(tmp_path):
    turns = [{"role": "human", "content": "Say hello."}, {"role": "bot", "content": "Hello!"}]
    path = write(tmp_path, {"messages": turns})
    assert read(path, roles={"human": "user", "bot": "assistant"}) == [HELLO]


BOT = {"role": "bot", "content": "Hello!"}
WRONG = [
    (
        {"messages": [USER, BOT]},
        "messages[1].role is 'bot'; expected 'system', 'user' or 'assistant'. "
        "Map it with --role bot=assistant.",
    ),
    (
        {"messages": [{"role": "critic", "content": "x"}]},
        "messages[0].role is 'critic'; expected 'system', 'user' or 'assistant'. "
        "Map it with --role critic=ROLE.",
    ),
    (
        {"messages": [{"content": "x"}]},
        "messages[0].role is missing or null; expected 'system', 'user' or 'assistant'.",
    ),
    (
        {"messages": []},
        "messages is an empty list; expected a list of role and content.",
    ),
    (
        {"messages": [USER, "Hello!"]},
        "messages[1] is 'Hello!'; expected an object of role and content.",
    ),
    (
        {"messages": [{"role": "user", "content": ["x"]}, ANSWER]},
        "messages[0].content[0].type is missing or null; expected 'text' or 'image'.",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": " \n"}]},
        "messages[1].content is empty; expected a text.",
    ),
    (
        {"messages": [USER]},
        "messages[0].role is 'user'; expected the last turn to be the assistant's answer, "
        "or 'answers'.",
    ),
    (
        {"messages": [ANSWER]},
        "messages: the turn before the answer is missing; expected the user's.",
    ),
    (
        {"messages": [USER, ANSWER, ANSWER]},
        "messages: the turn before the answer is assistant's; expected the user's.",
    ),
    (
        {"messages": [USER, {"role": "system", "content": "x"}, ANSWER]},
        "messages[1].role is 'system'; expected it as the first turn only.",
    ),
    (
        {"messages": [USER, ANSWER], "answers": ["Hi", ""]},
        "answers[1] is empty; expected a text.",
    ),
    (
        {"messages": [USER, ANSWER], "instruction": 3},
        "instruction is 3; expected a text.",
    ),
    (
        {"messages": [USER, ANSWER], "id": 1.5},
        "id is 1.5; expected a text or a whole number.",
    ),
    ({"prompt": "", "completion": "x"}, "prompt is empty; expected a text."),
    ({"prompt": "x", "completion": ""}, "completion is empty; expected a text."),
    ({"prompt": "x", "completion": None}, "completion is missing or null; expected a text."),
    ({"prompt": "x", "answers": []}, "answers is an empty list; expected at least one text."),
    (
        {"prompt": "x", "completion": [ANSWER, USER]},
        "completion has the turns assistant, user; expected one of the assistant.",
    ),
    ({"prompt": "half \ud83d", "completion": "x"}, "prompt has half a surrogate pair"),
    ({"instruction": "x", "input": 3, "output": "y"}, "input is 3; expected a text."),
    ({"instruction": "x", "output": ""}, "output is empty; expected a text."),
    ({"instruction": " ", "output": "y"}, "instruction is empty; expected a text."),
]


@pytest.mark.parametrize(("record", "message"), WRONG)
def test_a_wrong_record_is_one_line(tmp_path, record, message):
    text = problem(tmp_path, record)
    assert text.startswith(f":1: {message}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"Definition": [], "Instances": [1]}, ":1: Definition is an empty list;"),
        ({"Definition": "x", "Instances": {}}, ":1: Instances is an object; expected a list"),
        (
            {"Definition": "x", "Instances": [{"input": "a", "output": []}]},
            ": Instances[0]: output is an empty list; expected at least one text.",
        ),
        (
            {"Definition": "x", "Instances": [{"output": ["a"]}]},
            ": Instances[0]: input is missing or null; expected a text.",
        ),
        ({"Definition": "x", "Instances": ["a"]}, ": Instances[0]: found 'a'; expected {"),
    ],
)
def test_a_wrong_superni_task_names_the_instance(tmp_path, task, message):
    assert problem(tmp_path, task).startswith(message)
