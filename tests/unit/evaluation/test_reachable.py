"""What could never score is told before anything is learned."""

import dataclasses

import pytest

from lcia.data import Message, Sample, Task
from lcia.errors import ConfigError, DataError, ModelError
from lcia.evaluation.reachable import check_answers
from lcia.models import ChatFormat
from lcia.models.answering import ModelFacts
from templates import byte_tokenizer, shaped


def task(*answers, limit=32, system=None, scorer="exact_match") -> Task:
    before = (Message(role="system", content=system),) if system else ()
    samples = tuple(
        Sample(
            id=f"s{i}",
            messages=(*before, Message(role="user", content=f"Say it. {i}")),
            answers=(answer,) if isinstance(answer, str) else answer,
        )
        for i, answer in enumerate(answers)
    )
    return Task(name="t", train=samples, test=samples, max_new_tokens=limit, scorer=scorer)


def chat_of(tokenizer, **facts) -> ChatFormat:
    return ChatFormat(tokenizer, max_prompt_tokens=200, facts=ModelFacts(**facts))


def letters():
    """A tokenizer that knows lower-case letters and blanks alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz "]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<unk>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def test_answers_that_can_be_given_are_passed_in_silence(caplog):
    check_answers(chat_of(shaped("chatml")), task("ok", "two\nlines", "<|im_end|>"))
    assert not caplog.records


def test_answers_longer_than_what_is_generated_are_counted_with_the_first(caplog):
    check_answers(chat_of(shaped("chatml")), task("ok", "a long answer", "another one", limit=5))
    (told,) = caplog.messages
    assert told == (
        "task 't': 4 of 6 answers are longer than the 5 tokens that are generated; the first is "
        "sample 's1' with 13. Raise max_new_tokens (lcia learn --max-new-tokens)."
    )


def test_one_acceptable_answer_that_fits_is_enough(caplog):
    check_answers(chat_of(shaped("chatml")), task(("a long answer", "short"), limit=5))
    assert not caplog.records


def test_a_task_that_could_never_score_is_an_error():
    with pytest.raises(DataError, match=r"no held-out sample could score: of sample 's0', .*Raise"):
        check_answers(chat_of(shaped("chatml")), task("a long answer", "another one", limit=5))


def test_scorers_that_reward_a_beginning_are_told_and_not_refused(caplog):
    check_answers(
        chat_of(shaped("chatml")), task("yes it is so", "no never ever", limit=6, scorer="rougeL")
    )
    assert "4 of 4 answers are longer than the 6 tokens" in caplog.text


def test_answers_the_tokens_cannot_write_are_counted_with_the_first(caplog):
    check_answers(chat_of(letters()), task("ok", "42"))
    (told,) = caplog.messages
    assert "2 of 4 answers cannot be written in the model's tokens" in told
    assert "the first is sample 's1'" in told
    with pytest.raises(DataError, match=r"the answer '42' comes back as ''.*take another model"):
        check_answers(chat_of(letters()), task("42", "7"))


def test_a_refused_system_turn_names_task_sample_and_remedy():
    told = r"task 't', sample 's0': model: its chat template refuses .*generation.fold_system=true"
    with pytest.raises(ModelError, match=told):
        check_answers(chat_of(shaped("gemma")), task("ok", system="Be brief."))


def test_answers_beyond_the_models_positions_are_refused():
    chat = chat_of(byte_tokenizer(), positions=64)
    with pytest.raises(ConfigError, match=r"task 't': An answer of 60 tokens was asked for.* 48"):
        check_answers(chat, task("ok", limit=60))
    long = dataclasses.replace(task("ok", "x" * 70), test=task("ok").test)
    with pytest.raises(DataError, match="task 't', sample 's1': its answer has 70 tokens"):
        check_answers(chat, long)
