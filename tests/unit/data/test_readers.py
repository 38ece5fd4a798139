"""Each format: what it becomes in memory, and the message for each way to get a record wrong."""

import json
import logging

import pytest

from lcia.data import Message, Sample, check, hold_out, read
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


def write_to(folder, *records):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def said(user, answer, **more):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer, **more}]


def talk(asks, answers, turns=2, **more):
    return {
        "conversations": [
            {"from": who, "value": f"{what} {k}"}
            for k in range(turns)
            for who, what in ((asks, "question"), (answers, "answer"))
        ],
        **more,
    }


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        (
            {"instruction": "Double it.", "output": "8", "history": [["2 + 2?", "4"]]},
            ["2 + 2?", "4", "Double it."],
        ),
        ({"instruction": "Greet.", "output": "Hi", "system": "Be kind."}, ["Be kind.", "Greet."]),
        ({"prompt": "Greet.", "completion": "Hi", "system": "Be kind."}, ["Be kind.", "Greet."]),
        ({"messages": said("Greet.", "Hi"), "system": "Be kind."}, ["Be kind.", "Greet."]),
        ({**talk("human", "gpt", turns=1), "system": "Be kind."}, ["Be kind.", "question 0"]),
        ({"messages": [*said("a", "b"), *said("c", "d", weight=0)]}, ["a"]),
        ({"messages": [*said("a", "b", weight=0), *said("c", "d")]}, ["a", "b", "c"]),
        ({"messages": [*said("a", "b", weight=1), *said("c", "d", train=False)]}, ["a"]),
    ],
)
def test_what_a_field_says_reaches_the_sample(tmp_path, record, turns):
    (sample,) = read(write_to(tmp_path, record))
    assert [message.content for message in sample.messages] == turns


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": False}, "label is False, so this is not to"),
        ({"prompt": "a", "completion": "b", "weight": 0}, "weight is 0, so this is not to be"),
        ({"prompt": "a", "completion": "b", "weight": 0.5}, "weight is 0.5; expected 0 or 1"),
        ({"prompt": "a", "completion": "b", "input": "c"}, "input is 'c'; this format has no"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "rejected is 'c'; lcia learns from"),
        ({"prompt": "a", "completion": "b", "tools": [{}]}, "tools is a list; lcia does not"),
        ({"prompt": "a", "completion": "b", "images": ["x.png"]}, "images is a list; this format"),
        ({"messages": said("a", "b", tool_calls=[{"id": "1"}])}, "messages[1].tool_calls is a"),
        ({"messages": said("a", "b", function_call={"name": "f"})}, "messages[1].function_call"),
        ({"messages": said("a", "b", weight=0)}, "messages: no answer is to be learned."),
        ({"messages": said("a", "b"), "functions": [{"name": "f"}]}, "functions is a list; lcia"),
        (
            {"messages": [{"role": "tool", "content": "12"}, *said("a", "b")]},
            "messages[0].role is 'tool'; lcia does not train the use of tools.",
        ),
        (
            {"messages": [{"role": "system", "content": "x"}, *said("a", "b")], "system": "y"},
            "system differs from the first turn's",
        ),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "history[0] is 'c'; expected a"),
        (
            talk("human", "gpt", turns=1, tools='[{"a": 1}]'),
            "tools is '[{\"a\": 1}]'; lcia does not",
        ),
        (
            {"question_id": 1, "text": "a", "answer": "b", "system": "c"},
            "system is 'c'; this format has no place for it.",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, record, message):
    path = write_to(tmp_path, record)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1: {message}")


@pytest.mark.parametrize("nothing", [None, "", [], {}, "[]"])
@pytest.mark.parametrize("key", ["system", "history", "tools", "input", "rejected", "images"])
def test_a_field_that_says_nothing_is_no_field(tmp_path, key, nothing):
    plain = {"prompt": "a", "completion": "b"}
    assert read(write_to(tmp_path, {**plain, key: nothing})) == read(write_to(tmp_path, plain))


def test_fields_that_nobody_reads_are_counted_and_told(tmp_path, caplog):
    path = write_to(
        tmp_path,
        {"messages": said("a", "b", name="Bo", reasoning_content="hm"), "topic": "x", "id": 1},
        {"messages": said("c", "d"), "topic": "y", "source": "web"},
    )
    assert check(path).unread == {"messages[].reasoning_content": 1, "topic": 2}
    with caplog.at_level(logging.WARNING):
        read(path)
    assert "messages[].reasoning_content (1), topic (2)" in caplog.text


def test_a_label_that_is_a_class_is_counted_and_one_that_says_good_needs_no_word(tmp_path):
    labels = [True, "true", 1, None, 0, "spam", 3]
    file = write_to(
        tmp_path, *({"prompt": f"{i}", "completion": "b", "label": x} for i, x in enumerate(labels))
    )
    report = check(file)
    assert report.ok and report.samples == 7
    assert report.unread == {"label": 3}


def test_a_conversation_that_ends_with_a_question_says_so(tmp_path):
    left = talk("human", "gpt")
    left["conversations"].append({"from": "human", "value": "and then?"})
    path = write_to(tmp_path, left, talk("human", "gpt"))
    assert check(path).unread == {"conversations[-1], which has no answer": 1}
    assert len(read(path)) == 4
    chat = [*said("a", "b"), {"role": "user", "content": "and then?"}]
    assert check(
        write_to(tmp_path, {"messages": [*said("x", "y"), *chat]}), turns="all"
    ).unread == {"messages[-1], which has no answer": 1}
    off = [*said("a", "b"), *said("c", "d", weight=0)]
    assert check(write_to(tmp_path, {"messages": off})).unread == {}


def test_speakers_mapped_by_roles_keep_every_answer(tmp_path):
    want = read(write_to(tmp_path, talk("human", "gpt", turns=3)))
    roles = {"customer": "user", "agent": "assistant"}
    got = read(write_to(tmp_path, talk("customer", "agent", turns=3)), roles=roles)
    assert got == want
    assert [sample.id for sample in got] == ["1-1", "1-2", "1-3"]
    assert read(write_to(tmp_path, talk("user", "assistant", turns=3))) == want


def test_turns_of_conversations_may_be_role_and_content(tmp_path):
    want = read(write_to(tmp_path, talk("human", "gpt")))
    record = {
        "conversations": [
            {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
            for t in talk("human", "gpt")["conversations"]
        ]
    }
    assert read(write_to(tmp_path, record)) == want


def test_an_answer_of_weight_0_in_a_conversation_is_context_only(tmp_path):
    record = talk("human", "gpt", turns=3)
    record["conversations"][3]["weight"] = 0
    samples = read(write_to(tmp_path, record))
    assert [sample.answers[0] for sample in samples] == ["answer 0", "answer 2"]
    assert "answer 1" in [message.content for message in samples[1].messages]


def test_ids_that_come_again_in_llava_files_are_told_apart(tmp_path):
    samples = read(write_to(tmp_path, *[{"id": "42", **talk("human", "gpt", turns=1)}] * 3))
    assert [sample.id for sample in samples] == ["42", "42@2", "42@3"]


def conversations(count, turns, *, exploded):
    """Samples of conversations: all of one record, or each a record that repeats the one before."""
    samples = []
    for c in range(count):
        messages = ()
        for k in range(turns):
            messages = (*messages, Message(role="user", content=f"{c} question {k}"))
            samples.append(
                Sample(
                    id=f"{c}-{k}",
                    messages=messages,
                    answers=(f"{c} answer {k}",),
                    conversation=None if exploded else str(c),
                )
            )
            messages = (*messages, Message(role="assistant", content=f"{c} answer {k}"))
    return samples


@pytest.mark.parametrize("exploded", [False, True])
def test_a_conversation_is_trained_on_or_held_out_as_a_whole(exploded):
    train, test = hold_out(conversations(20, 4, exploded=exploded), at_most=100, seed=0)
    assert len(test) == 16
    assert not {s.id.partition("-")[0] for s in train} & {s.id.partition("-")[0] for s in test}


def test_conversations_that_only_open_alike_are_two():
    def sample(name, *turns):
        roles = ("user", "assistant") * len(turns)
        messages = tuple(Message(role=r, content=t) for r, t in zip(roles, turns, strict=False))
        return Sample(id=name, messages=messages, answers=(f"answer {name}",))

    opening = [sample(f"{i}", "Hi", f"Hello {i}", f"question {i}") for i in range(19)]
    _, test = hold_out([sample("alone", "Hi"), *opening], at_most=100, seed=0)
    assert len(test) == 4
