"""Routed evaluation: each sample by its own group, nothing asked twice."""

import pytest
import torch
from peft import LoraConfig

from lcia.evaluation.generate import Request, evaluate, generate, scores_percent
from lcia.grouping import RouteDecision
from lcia.models import AdapterHost, load_model


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
