"""What is tried before a task is begun."""

import copy

import pytest
import torch

from lcia.config import AssistantConfig
from lcia.config.training import OPTIMIZERS
from lcia.data import Message, Sample, Task
from lcia.data.sample import Image
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, Store, load_host
from lcia.learner.preflight import preflight
from lcia.registry import METHODS

TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_steps": 2}


class Killed(BaseException):
    """Stands for the process dying."""


def configure(model, **settings) -> AssistantConfig:
    training = {**TRAINING, **settings.pop("training", {})}
    return AssistantConfig(model=str(model), dtype="float32", training=training, **settings)


@pytest.fixture(scope="module")
def host(tiny_model):
    return load_host(configure(tiny_model))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"adapter": {"target_modules": ["query_key_value"]}}, "query_key_value"),
        ({"adapter": {"target_modules": ["q_proj", "qproj"]}}, "'qproj' meets none"),
        (
            {"adapter": {"target_modules": ["q_proj"], "layers_to_transform": [0, 40]}},
            "layers_to_transform: 40",
        ),
        (
            {"training": {"dataloader_drop_last": True, "per_device_train_batch_size": 64}},
            "16 train",
        ),
        ({"training": {"dataloader_persistent_workers": True}}, "persistent_workers"),
        ({"training": {"dataloader_multiprocessing_context": "none_such"}}, "processing"),
        ({"training": {"fp16": True}}, "fp16.*on a CPU"),
        ({"method": "olora", "adapter": {"use_rslora": True}}, "use_rslora"),
    ],
)
def test_settings_that_cannot_train_make_no_assistant(
    settings, named, host, tiny_model, tmp_path, colours
):
    config = configure(tiny_model, **settings)
    with pytest.raises(ConfigError, match=named) as caught:
        ContinualLearner.create(tmp_path / "a", config, first=colours, host=host)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()
    preflight(host, colours, configure(tiny_model))


def test_an_assistant_made_before_gets_no_run_by_settings_that_cannot_train(
    host, tiny_model, tmp_path, colours
):
    config = configure(tiny_model, adapter={"target_modules": ["query_key_value"]})
    learner = ContinualLearner.create(tmp_path / "a", config, host=host)
    with pytest.raises(ConfigError, match="query_key_value"):
        learner.learn(colours)
    assert not (tmp_path / "a" / "runs").exists()


@pytest.mark.parametrize("method", METHODS.names())
def test_a_preflight_changes_neither_weights_nor_random_state(method, host, tiny_model, colours):
    before = {n: p.clone() for n, p in host.base.model.state_dict().items()}
    config = copy.deepcopy(host.base.model.config.to_dict())
    state = torch.get_rng_state()
    host.proven.clear()
    preflight(host, colours, configure(tiny_model, method=method))
    assert len(host.proven) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert host.base.model.config.to_dict() == config
    after = host.base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert not host.base.model.training


@pytest.mark.parametrize("method", ["lcia", "moelora"])
def test_ten_steps_are_the_same_to_the_bit_as_without_a_preflight(
    method, tiny_model, tmp_path, colours, monkeypatch
):
    told = ("journal.jsonl", "audit.jsonl")  # with times

    def files(root):
        config = configure(tiny_model, method=method, training={"max_steps": 10})
        ContinualLearner.create(root, config, first=colours).learn(colours)
        paths = [p for p in root.rglob("*") if p.suffix in (".safetensors", ".jsonl")]
        steps = [e for e in Store.open(root).current.journal() if e["event"] == "step"]
        assert len(steps) == 10
        return {
            **{p.relative_to(root): p.read_bytes() for p in paths if p.name not in told},
            "steps": [(e["loss"], e["grad_norm"], e["learning_rate"]) for e in steps],
        }

    checked = files(tmp_path / "checked")
    monkeypatch.setattr("lcia.learner.learning.preflight", lambda *args: None)
    assert files(tmp_path / "unchecked") == checked


def test_what_passed_is_not_tried_again(host, tiny_model, tmp_path, colours, shades, monkeypatch):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model), host=host)
    learner.learn(colours)
    monkeypatch.setattr("lcia.learner.preflight._step", None)  # would not work
    learner.learn(shades)


KNOWN = [
    *({"optim": name} for name in OPTIMIZERS),
    {"lr_scheduler_type": "inverse_sqrt"},
    {"lr_scheduler_type": "polynomial"},
    {"lr_scheduler_type": "cosine_with_restarts"},
    {"train_sampling_strategy": "sequential"},
    {"gradient_checkpointing": True},
    {"gradient_accumulation_steps": 3},
    {"dataloader_drop_last": True},
    {"dataloader_num_workers": 1},
    {"warmup_steps": 0.5},
    {"max_grad_norm": 0.0},
    {"full_determinism": True},
]


@pytest.mark.parametrize("settings", KNOWN, ids=lambda s: "-".join(map(str, *s.items())))
def test_what_is_known_to_work_resumes_to_the_bit(
    settings, host, tiny_model, tmp_path, colours, monkeypatch
):
    from lcia.learner.training import _Steps

    config = configure(tiny_model, training={"save_steps": 1, "num_train_epochs": 2, **settings})
    weights = "groups/g1/0001/adapter_model.safetensors"
    ContinualLearner.create(tmp_path / "whole", config, host=host).learn(colours)

    def die(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise Killed

    cut = ContinualLearner.create(tmp_path / "cut", config, host=host)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_Steps, "on_step_end", die)
        cut.learn(colours)
    assert list((tmp_path / "cut" / "runs").glob("*/checkpoints/checkpoint-1/complete.json"))
    ContinualLearner(Store.open(tmp_path / "cut"), host=host).learn(colours)
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("training", [{"fp16": True}, {"fp16": True, "bf16": False}])
def test_fp16_on_bfloat16_weights_is_refused(training, tiny_model, tmp_path, colours):
    config = configure(tiny_model, training=training).model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="fp16"):
        ContinualLearner.create(tmp_path / "a", config, first=colours)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match=r"fp16: the model's weights are bfloat16"):
        preflight(load_host(config), colours, config)  # as where a GPU mixes


def test_what_an_earlier_lcia_let_pass_goes_on(host, tiny_model, tmp_path, colours):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model), host=host)
    training = {**learner.config.training, "fp16": True}
    learner.config = learner.config.model_copy(update={"training": training})
    assert learner.learn(colours).version == 1


def test_an_image_for_a_model_that_reads_text_is_said_first(host, tiny_model, tmp_path):
    shown = Message(role="user", content="What?", images=(Image(path="a.png", sha256="0"),))
    sample = Sample(id="1", messages=(shown,), answers=("a",))
    task = Task(name="seen", train=(sample,), test=(sample,))
    with pytest.raises(ConfigError, match=r"reads text only"):
        ContinualLearner.create(tmp_path / "a", configure(tiny_model), first=task, host=host)
    assert not (tmp_path / "a").exists()
