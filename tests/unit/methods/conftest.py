"""One model in memory for all tests of methods, and what they learn."""

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner, load_host
from lcia.methods import TaskContext
from lcia.models import AdapterHost
from lcia.registry import METHODS

TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_steps": 2}


def configure(model: Path, method, **settings) -> AssistantConfig:
    training = {**TRAINING, **settings.pop("training", {})}
    adapter = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **settings.pop("adapter", {})}
    return AssistantConfig(
        model=str(model),
        dtype="float32",
        method=method,
        training=training,
        adapter=adapter,
        **settings,
    )


@pytest.fixture(scope="session")
def host(tiny_model) -> AdapterHost:
    """The tiny model, loaded once."""
    loaded = load_host(configure(tiny_model, "sequential"))
    # Trainer collects garbage after every training: without what is loaded, that is fast.
    gc.freeze()
    return loaded


@pytest.fixture(scope="session")
def create(tiny_model, tmp_path_factory, host) -> Callable[..., ContinualLearner]:
    """Make an empty assistant that learns by a method."""

    def make(method, **settings) -> ContinualLearner:
        root = tmp_path_factory.mktemp("assistants") / "assistant"
        return ContinualLearner.create(root, configure(tiny_model, method, **settings), host=host)

    return make


@pytest.fixture
def built(host, colours) -> Callable[..., SimpleNamespace]:
    """Open an adapter the way a method does, and give the method its context."""

    def build(name, settings=None, *, start=None, reused=True, adapter=None, **context):
        method = METHODS.get(name)(**(settings or {}))
        lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **(adapter or {})}
        torch.manual_seed(0)  # whatever test ran before
        model = method.open(host, start, lora)
        seen = TaskContext(
            task=colours,
            task_index=1,
            group="g1",
            reused=reused,
            parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
            encode=lambda samples: batch_of(host, samples),
            **context,
        )
        return SimpleNamespace(method=method, model=model, context=seen)

    yield build
    host.clear()


def batch_of(host: AdapterHost, samples):
    return host.chat.collate([host.chat.encode_example(sample) for sample in samples])
