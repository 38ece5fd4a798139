"""Fields that change what a model must say are used, refused, or counted; never read past."""

import json
import logging

import pytest

from lcia.data import Message, check, hold_out, read
from lcia.data.sample import Sample
from lcia.errors import DataError


def write(folder, *records):
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
    (sample,) = read(write(tmp_path, record))
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
    path = write(tmp_path, record)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1: {message}")


@pytest.mark.parametrize("nothing", [None, "", [], {}, "[]"])
@pytest.mark.parametrize("key", ["system", "history", "tools", "input", "rejected", "images"])
def test_a_field_that_says_nothing_is_no_field(tmp_path, key, nothing):
    plain = {"prompt": "a", "completion": "b"}
    assert read(write(tmp_path, {**plain, key: nothing})) == read(write(tmp_path, plain))


def test_fields_that_nobody_reads_are_counted_and_told(tmp_path, caplog):
    path = write(
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
    file = write(
        tmp_path, *({"prompt": f"{i}", "completion": "b", "label": x} for i, x in enumerate(labels))
    )
    report = check(file)
    assert report.ok and report.samples == 7
    assert report.unread == {"label": 3}


def test_a_conversation_that_ends_with_a_question_says_so(tmp_path):
    left = talk("human", "gpt")
    left["conversations"].append({"from": "human", "value": "and then?"})
    path = write(tmp_path, left, talk("human", "gpt"))
    assert check(path).unread == {"conversations[-1], which has no answer": 1}
    assert len(read(path)) == 4
    chat = [*said("a", "b"), {"role": "user", "content": "and then?"}]
    assert check(write(tmp_path, {"messages": [*said("x", "y"), *chat]}), turns="all").unread == {
        "messages[-1], which has no answer": 1
    }
    off = [*said("a", "b"), *said("c", "d", weight=0)]
    assert check(write(tmp_path, {"messages": off})).unread == {}


def test_speakers_mapped_by_roles_keep_every_answer(tmp_path):
    want = read(write(tmp_path, talk("human", "gpt", turns=3)))
    roles = {"customer": "user", "agent": "assistant"}
    got = read(write(tmp_path, talk("customer", "agent", turns=3)), roles=roles)
    assert got == want
    assert [sample.id for sample in got] == ["1-1", "1-2", "1-3"]
    assert read(write(tmp_path, talk("user", "assistant", turns=3))) == want


def test_turns_of_conversations_may_be_role_and_content(tmp_path):
    want = read(write(tmp_path, talk("human", "gpt")))
    record = {
        "conversations": [
            {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
            for t in talk("human", "gpt")["conversations"]
        ]
    }
    assert read(write(tmp_path, record)) == want


def test_an_answer_of_weight_0_in_a_conversation_is_context_only(tmp_path):
    record = talk("human", "gpt", turns=3)
    record["conversations"][3]["weight"] = 0
    samples = read(write(tmp_path, record))
    assert [sample.answers[0] for sample in samples] == ["answer 0", "answer 2"]
    assert "answer 1" in [message.content for message in samples[1].messages]


def test_ids_that_come_again_in_llava_files_are_told_apart(tmp_path):
    samples = read(write(tmp_path, *[{"id": "42", **talk("human", "gpt", turns=1)}] * 3))
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
