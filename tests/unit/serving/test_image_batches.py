"""Prompts with and without images in one batch, for every family, as ``AdapterHost`` answers."""

import asyncio
import base64
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from PIL import Image as PILImage

from lcia.data import Image, Message
from lcia.models import AdapterHost, load_model
from lcia.serving.config import ServeConfig
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.schemas import ChatRequest, parse
from lcia.serving.http.service import Service
from tiny_visual import FAMILIES, save


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save(FAMILIES[request.param], tmp_path_factory.mktemp("families") / request.param)


def adapter_with_projector(host, folder):
    """A random adapter, and a projector unlike the model's own."""
    model = host.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        for parameter in host.projector.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    host.projector.save(folder)
    host.clear()
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """Files of different size."""
    for name, size in {"a": (60, 40), "b": (50, 90)}.items():
        PILImage.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


def request(folder, *parts):
    """The body of a chat request: texts, and names of images."""

    def part(value):
        if not value.startswith("@"):
            return {"type": "text", "text": value}
        data = base64.b64encode((folder / f"{value[1:]}.png").read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    content = [part(value) for value in parts]
    return {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": 10}


CASES = [("@a", "What is it?"), ("Without.",), ("Is", "@a", "or", "@b", "the same?"), ("@b",)]
MESSAGES = [
    ("What is it?", ("a", 0)),
    ("Without.",),
    ("Is\nor\nthe same?", ("a", 2), ("b", 5)),
    ("", ("b", 0)),
]


class Unrouted:
    """Stands for a store: nothing is routed here."""

    class current:
        number, names, pinned, adapters = 0, {}, {}, {}

    @classmethod
    def named(cls, model):
        return cls.current, model


@pytest.mark.filterwarnings("ignore")
def test_answers_equal_those_given_one_by_one(folder, image_folder, tmp_path):
    host = AdapterHost(load_model(str(folder), dtype="float32"))
    group = ("g1@0001", adapter_with_projector(host, tmp_path / "g1"))
    conversations = [
        (
            Message(
                role="user",
                content=text,
                images=tuple(Image(path=str(image_folder / f"{n}.png"), at=at) for n, at in images),
            ),
        )
        for text, *images in MESSAGES
    ]
    rows = [(i, adapter) for i in range(4) for adapter in (None, group)]
    expected = [
        host.generate([conversations[i]], [adapter], max_new_tokens=10)[0] for i, adapter in rows
    ]
    host.clear()
    assert len(set(expected)) > 5
    service = Service(
        host, Unrouted, config=ServeConfig(limits=EngineLimits(max_context=512, max_batch=8))
    )

    async def ask():
        service.answers.start()

        async def one(i, adapter):
            asked = parse(ChatRequest, request(image_folder, *CASES[i]))
            prepared = await service.prepare(asked)
            answer = service.answers.ask(prompt=replace(prepared.prompt, adapter=adapter))
            return "".join(
                [d.text async for d in service.generate(replace(prepared, answer=answer))]
            )

        found = await asyncio.gather(*(one(i, adapter) for i, adapter in rows))
        await service.stop()
        return found

    assert [text.strip() for text in asyncio.run(ask())] == expected


def test_a_text_model_says_that_it_reads_no_images(tiny_model, image_folder):
    host = AdapterHost(load_model(str(tiny_model), dtype="float32"))
    service = Service(host, Unrouted, config=ServeConfig(limits=EngineLimits(max_context=512)))
    asked = parse(ChatRequest, request(image_folder, "@a", "What is it?"))
    with pytest.raises(ApiError, match="reads no images") as refused:
        asyncio.run(service.prepare(asked))
    assert refused.value.status == 400
