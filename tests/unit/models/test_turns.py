"""Which tokens of a conversation are learned: the answers, and nothing the user or system says."""

import json
import re
from importlib.resources import files

import pytest

from lcia.data import TaskConfig, check, load_task, read
from lcia.models import ChatFormat
from templates import SHAPES, byte_tokenizer, shaped

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima"},
    {"role": "user", "content": "And of Chad?"},
    {"role": "assistant", "content": "N'Djamena, é."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye"},
]
WITHOUT_SYSTEM = ("gemma", "llama2")
PUBLIC = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "gemma", "gemma3", "phi3", "phi3_5")
PUBLIC += ("cohere", "cohere2", "lfm2", "glm4moe")


def samples(folder, turns, **options):
    path = folder / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    return read(path, turns="all", **options)


def public_tokenizer(name):
    """Return a tokenizer with a public template in which TRL marked what the assistant says."""
    pytest.importorskip("trl")
    template = (files("trl") / "chat_templates" / f"{name}_training.jinja").read_text()
    special = dict.fromkeys(re.findall(r"<\|?[A-Za-z_/]+\|?>", template))
    return byte_tokenizer(template, ["<bos>", *special], bos_token="<bos>")


@pytest.mark.parametrize("name", PUBLIC)
def test_all_turns_are_those_of_trls_assistant_masks(tmp_path, name):
    """But for two kinds of tokens that no model is asked for.

    What the template writes itself before an answer, and what follows the token that ends one.
    """
    tokenizer = public_tokenizer(name)
    turns = [turn for turn in TURNS if turn["role"] != "system" or name not in WITHOUT_SYSTEM]
    whole = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = whole["input_ids"], whole["assistant_masks"]
    chat = ChatFormat(tokenizer, max_prompt_tokens=5000)
    starts, trained = {}, set()
    for sample in samples(tmp_path, turns):
        example = chat.encode_example(sample)
        start, end = len(example.prompt_ids), len(example.prompt_ids) + len(example.answer_ids)
        assert ids[:end] == example.prompt_ids + example.answer_ids
        trained |= set(range(start, end))
        starts[end - 1] = start
    assert len(starts) == 3
    marked = {i for i, on in enumerate(mask) if on}
    assert trained <= marked
    for extra in marked - trained:
        end = max((end for end in starts if end < extra), default=None)
        behind = end is not None and set(range(end, extra)) <= marked and ids[end] in chat.stop_ids
        before = extra + 1 in starts.values() and tokenizer.decode([ids[extra]]) == "\n"
        assert behind or before, tokenizer.decode(ids[extra : extra + 9])


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"reasoning"}))
def test_what_is_learned_of_any_template_are_the_answers_with_their_ends(tmp_path, name):
    chat = ChatFormat(shaped(name), max_prompt_tokens=5000)
    turns = [turn for turn in TURNS if turn["role"] != "system" or name not in WITHOUT_SYSTEM]
    texts = []
    for sample in samples(tmp_path, turns):
        example = chat.encode_example(sample)
        assert chat.answering.answer(example.answer_ids) == sample.answers[0]
        texts.append(chat.tokenizer.decode(example.answer_ids))
    assert len(texts) == 3
    for text in texts:
        assert not any(turn["content"] in text for turn in TURNS if turn["role"] != "assistant")


def test_last_is_the_default_and_learns_one_answer(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": TURNS}))
    assert read(path) == read(path, turns="last")
    assert [sample.answers for sample in read(path)] == [("Bye",)]
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}
    path.write_text(json.dumps(shared))
    assert [len(s.messages) for s in read(path)] == [1, 3]
    assert read(path, turns="all") == read(path)
    assert [len(s.messages) for s in read(path, turns="last")] == [3]


def test_answers_of_weight_nothing_are_context_only(tmp_path):
    turns = [dict(turn) for turn in TURNS]
    turns[4]["weight"] = 0
    found = samples(tmp_path, turns)
    assert [sample.answers[0] for sample in found] == ["Lima", "Bye"]
    assert "N'Djamena, é." in [message.content for message in found[1].messages]


def test_answers_of_one_conversation_are_not_split_between_train_and_test(tmp_path):
    path = tmp_path / "chats.jsonl"
    chats = [
        [{**turn, "content": f"{turn['content']} {i}"} for turn in TURNS[1:]] for i in range(20)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    assert check(path, turns="all").samples == 60
    task = load_task(TaskConfig(name="chats", train=path, turns="all"))
    number = re.compile(r"\d+$")
    train, test = ({number.search(s.prompt)[0] for s in part} for part in (task.train, task.test))
    assert len(train) + len(test) == 20
    assert not train & test
