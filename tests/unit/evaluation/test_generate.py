"""Answers to held-out samples: made, kept, and made again only where a change reaches."""

import dataclasses

import pytest
import torch
from peft import LoraConfig

from lcia.data import Message, Sample, Task
from lcia.errors import ConfigError, DataError, ModelError
from lcia.evaluation.generate import Request, evaluate, generate, scores_percent
from lcia.evaluation.kept import Keep, KeptAnswers, check_answers
from lcia.grouping import RouteDecision
from lcia.models import AdapterHost, ChatFormat, load_model
from lcia.models.answering import ModelFacts
from templates import byte_tokenizer, shaped


@pytest.fixture
def host(tiny_model) -> AdapterHost:
    return AdapterHost(load_model(str(tiny_model), dtype="float32"))


@pytest.fixture
def adapter(host, tmp_path):
    torch.manual_seed(1)
    model = host.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "a")
    host.clear()
    return ("g1@0001", tmp_path / "a")


def to(group):
    """A route that always decides the same."""

    def route(text):
        return RouteDecision(
            group=group,
            similarity=0.5,
            nearest=group,
            runner_up=None,
            runner_up_similarity=0.0,
            reason="reached",
            instruction=text,
            instruction_found=True,
        )

    return route


def counting(host, monkeypatch):
    asked = []
    original = host.generate

    def generate(conversations, adapters, **options):
        asked.extend(adapters)
        return original(conversations, adapters, **options)

    monkeypatch.setattr(host, "generate", generate)
    return asked


def test_answers_keep_the_order_of_the_requests_whatever_the_batches(host, adapter, colours):
    requests = [
        Request(messages=s.messages, adapter=a, max_new_tokens=n)
        for s, a, n in zip(colours.train, [None, adapter] * 8, [2, 3, 5, 4] * 4, strict=True)
    ]
    one_by_one = [generate(host, [request], batch_size=1)[0] for request in requests]
    assert generate(host, requests, batch_size=5) == one_by_one


def test_known_answers_and_the_base_models_are_not_asked_again(host, adapter, colours, monkeypatch):
    asked = counting(host, monkeypatch)
    settings = {"adapters": {"g1": adapter}, "batch_size": 8}
    base = evaluate(host, [colours], route=to(None), **settings)
    assert evaluate(host, [colours], route=to(None), **settings) == base
    assert len(asked) == len(colours.test)
    routed = evaluate(host, [colours], route=to("g1"), **settings)
    again = evaluate(host, [colours], route=to("g1"), known=routed, **settings)
    assert again == routed
    assert len(asked) == 2 * len(colours.test)
    assert {(p.adapter, p.group) for p in routed} == {("g1@0001", "g1")}


def test_scores_are_means_in_percent_by_task(host, colours, shades):
    predictions = evaluate(host, [colours, shades], route=to(None), adapters={}, batch_size=3)
    scores = scores_percent(predictions)
    assert list(scores) == ["colours", "shades"]
    wanted = sum(p.score for p in predictions if p.task == "shades") / len(shades.test) * 100
    assert scores["shades"] == pytest.approx(wanted)


def filled(path):
    kept = KeptAnswers(path, "asked")
    kept.add({0: "a\u2028b", 3: ""})
    kept.add({1: "\ud800 half a pair\r\n"})
    return kept.answers


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert filled(path) == KeptAnswers(path, "asked").answers


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    kept = KeptAnswers(path, "asked")
    assert set(kept.answers) == {0, 3}
    kept.add({7: "more"})
    assert set(KeptAnswers(path, "asked").answers) == {0, 3, 7}


def test_every_flipped_bit_costs_a_line_and_never_yields_another_answer(tmp_path):
    path = tmp_path / "answers.jsonl"
    good = filled(path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        kept = KeptAnswers(path, "asked").answers
        assert kept.items() < good.items()


def test_answers_to_other_requests_are_not_taken(tmp_path):
    path = tmp_path / "answers.jsonl"
    filled(path)
    assert KeptAnswers(path, "others").answers == {}
    assert KeptAnswers(path, "asked").answers == {}, "the file is the others' now"


def test_generating_goes_on_after_what_is_kept_in_the_same_batches(tiny_model, colours, tmp_path):
    keep = Keep(path=tmp_path / "answers.jsonl")
    requests = [
        Request(messages=sample.messages, adapter=None, max_new_tokens=4) for sample in colours.test
    ]
    hosts = [AdapterHost(load_model(str(tiny_model), dtype="float32")) for _ in range(2)]
    whole = generate(hosts[0], requests, batch_size=2, keep=keep)
    lines = keep.path.read_bytes().splitlines(keepends=True)
    keep.path.write_bytes(b"".join(lines[:2]))
    asked, original = [], hosts[1].generate

    def counting(conversations, adapters, **options):
        asked.append(len(conversations))
        return original(conversations, adapters, **options)

    hosts[1].generate = counting
    assert generate(hosts[1], requests, batch_size=2, keep=keep) == whole
    assert asked == [2]
    elsewhere = Keep(path=keep.path, given="other weights")
    hosts[1].base_answers = type(hosts[1].base_answers)(8)
    assert generate(hosts[1], requests, batch_size=2, keep=elsewhere) == whole
    assert asked == [2, 2, 2]


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
