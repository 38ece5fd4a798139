"""A tiny model, adapters that answer differently, and an engine to ask."""

import queue

import pytest
import torch
from peft import LoraConfig

from lcia.data import Message
from lcia.models import AdapterHost, load_model
from lcia.serving.engine.engine import Engine
from lcia.serving.engine.job import Job, Prompt
from lcia.serving.engine.limits import EngineLimits


@pytest.fixture(scope="session")
def base(tiny_model):
    return load_model(str(tiny_model), dtype="float32")


@pytest.fixture(scope="session")
def make_adapter(tiny_model):
    """Write a random adapter to a folder; by default on all linear layers."""

    def make(folder, *, seed=0, **settings):
        host = AdapterHost(load_model(str(tiny_model), dtype="float32"))
        torch.manual_seed(seed)
        model = host.new_adapter(LoraConfig(**{"r": 4, "target_modules": "all-linear", **settings}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adapters(make_adapter, tmp_path_factory):
    """Four adapters of different rank, scaling and reach, as (key, folder)."""
    root = tmp_path_factory.mktemp("adapters")
    kinds = {
        "plain": {},
        "ranks": {"r": 2, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.1.*up_proj": 9}},
        "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True},
        "few": {"layers_to_transform": [1], "target_modules": ["v_proj", "down_proj"]},
    }
    return [
        (f"{name}@0001", make_adapter(root / name, seed=i, **settings))
        for i, (name, settings) in enumerate(kinds.items())
    ]


@pytest.fixture
def host(base):
    """Answers one batch at a time, with peft: what the engine must agree with."""
    host = AdapterHost(base)
    yield host
    host.clear()


class Asker:
    """Asks an engine and collects what it answers."""

    def __init__(self, engine: Engine, host: AdapterHost) -> None:
        self.engine = engine
        self.chat = host.chat

    def submit(self, text, adapter=None, *, max_new_tokens=12, timeout_s=60.0, **settings):
        ids = self.chat.encode_prompt([Message(role="user", content=text)])[0]
        heard = queue.Queue()
        prompt = Prompt(ids=tuple(ids), adapter=adapter, max_new_tokens=max_new_tokens, **settings)
        job = Job(listener=heard.put, prompt=prompt, timeout_s=timeout_s)
        job.heard = heard
        self.engine.submit(job)
        return job

    @staticmethod
    def read(job):
        """Return the whole answer and its last delta."""
        text = ""
        while True:
            delta = job.heard.get(timeout=30)
            text += delta.text
            if delta.last:
                return text, delta

    def ask(self, *args, **settings):
        return self.read(self.submit(*args, **settings))[0]


@pytest.fixture
def start():
    """Start an engine for a base model; it ends with the test."""
    askers = []

    def start(base, **limits) -> Asker:
        asker = Asker(Engine(base, limits=EngineLimits(**limits)), AdapterHost(base))
        asker.engine.start()
        askers.append(asker)
        return asker

    yield start
    for asker in askers:
        asker.engine.stop()


@pytest.fixture
def asker(base, start) -> Asker:
    """An engine with four places that keeps two idle adapters."""
    return start(base, max_batch=4, max_waiting=64, max_adapters=2)
