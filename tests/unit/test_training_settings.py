"""Every field of TrainingArguments: known to work, set by lcia, or refused with a reason."""

import dataclasses

import pytest
from transformers import TrainingArguments

from lcia.config import AssistantConfig, check_training
from lcia.config.sharding import deepspeed_config, fsdp_options, without_sharding
from lcia.config.training import REASONS, SET_BY_LCIA, WORKS
from lcia.errors import ConfigError

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
OTHERS = sorted(FIELDS.keys() - WORKS - set(SET_BY_LCIA))


def refused(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        check_training(settings)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith("training")
    return line


def other_than(field) -> object:
    """A value that is not the default, of its kind."""
    default = field.default
    if isinstance(default, bool) or default is None:
        return not default
    return 7 if isinstance(default, int) else "something"


def test_the_statement_names_fields_that_exist():
    # transformers has them since 5.23
    later = {"activation_checkpointing", "activation_checkpointing_kwargs"}
    assert (WORKS | set(SET_BY_LCIA)) - FIELDS.keys() in (set(), later)
    for start in REASONS:
        assert any(name.startswith(start) for name in FIELDS), start
        assert not any(name.startswith(start) for name in WORKS), start


@pytest.mark.parametrize("name", OTHERS)
def test_a_field_not_known_to_work_is_refused_with_the_reason(name):
    line = refused(**{name: other_than(FIELDS[name])})
    assert line.startswith(f"training.{name} is ")
    assert line.endswith("Remove it.")


@pytest.mark.parametrize("name", SET_BY_LCIA)
def test_a_field_that_lcia_sets_is_refused(name):
    assert f"training.{name} is set by lcia" in refused(**{name: 1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optim": "adamw_8bit"}, "optim is 'adamw_8bit', which cannot be made: .*bitsandbytes"),
        ({"optim": "lomo"}, "optim is 'lomo'; expected one of adamw_torch"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "optim_target_modules"),
        ({"optim": "none_such"}, "none_such"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim is 'sgd'"),
        ({"report_to": "wandb"}, "report_to is .*wandb.*install"),
        ({"report_to": ["none_such"]}, "report_to is .*none_such"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr.*min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay.*num_decay_steps"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows a score that is measured"),
        ({"optim": "none_such"}, "none_such'; expected one of adamw_torch"),
        ({"lr_scheduler_type": "greedy"}, "greedy"),
        ({"lr_scheduler_kwargs": {"none_such": 1}}, "cosine.*none_such"),
        ({"train_sampling_strategy": "group_by_length"}, "expected 'random' or 'sequential'"),
        ({"dataloader_prefetch_factor": 2}, "prefetch_factor"),
        ({"log_level": "loud"}, "log_level is 'loud'"),
    ],
)
def test_what_cannot_be_made_is_named(settings, named):
    import re

    assert re.search(named, refused(**settings))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_train_epochs", [0, -1, "3", True, float("nan"), float("inf"), None]),
        ("max_steps", [0, -2, 2.5, "10", True]),
        ("learning_rate", [-1e-3, "1e-3", float("nan"), float("inf"), None]),
        ("per_device_train_batch_size", [0, -8, 1.5, True]),
        ("gradient_accumulation_steps", [0, -1, 0.5]),
        ("weight_decay", [-0.1, float("nan")]),
        ("adam_beta1", [1, -0.1]),
        ("adam_epsilon", [0, -1]),
        ("max_grad_norm", [-1, "1"]),
        ("warmup_steps", [-1, float("nan")]),
        ("save_steps", [0, -5]),
        ("save_total_limit", [0, 1, -1]),
        ("dataloader_num_workers", [-1, 0.5]),
        ("torch_empty_cache_steps", [0]),
        ("logging_steps", [0, 0.5]),
    ],
)
def test_numbers_out_of_range_are_named(name, values):
    for value in values:
        assert f"training.{name} is {value!r}; expected " in refused(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": -1},
        {"warmup_steps": 0.1},
        {"save_steps": 0.5},
        {"save_total_limit": None},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"bf16": True},
        {"load_best_model_at_end": False, "save_only_model": False, "eval_steps": None},
        {"report_to": "none"},
        {"gradient_checkpointing": True},
    ],
)
def test_what_works_passes(settings):
    check_training(settings)


def check(training, **settings):
    AssistantConfig(model="m", training=training, **settings).check()


def zero(stage=2, **more):
    return {"zero_optimization": {"stage": stage, **more}}


@pytest.mark.parametrize(
    ("asked", "reshard"),
    [
        ({"fsdp": True}, True),
        ({"fsdp": "full_shard auto_wrap"}, True),
        ({"fsdp": ["shard_grad_op"]}, False),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": False}}, False),
    ],
)
def test_fsdp_is_read_as_it_is_written(asked, reshard):
    check(asked)
    assert fsdp_options(asked) == {"reshard_after_forward": reshard, "layers": []}
    assert without_sharding({**asked, "optim": "sgd"}) == {"optim": "sgd"}


def test_layers_are_named_in_a_list_or_a_text():
    for layers in (["A", "B"], "A, B"):
        asked = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": layers}}
        assert fsdp_options(asked)["layers"] == ["A", "B"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fsdp": "hybrid_shard"}, "training.fsdp is 'hybrid_shard'"),
        ({"fsdp": "full_shard offload"}, "without offloading"),
        ({"fsdp": 1.5}, "training.fsdp is 1.5"),
        ({"fsdp_config": {"version": 2}}, "training.fsdp is not"),
        ({"fsdp": True, "fsdp_config": "fsdp.json"}, "as a mapping"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "version 2 only"),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 1}}, "version 2 only"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, "cpu_offload is not supported"),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": 2}}, "expected true or false"),
        ({"fsdp": True, "optim": "adafactor"}, "needs whole tensors"),
        ({"fsdp": True, "fp16": True}, "Use bfloat16"),
        ({"fsdp": True, "deepspeed": zero()}, "Remove one"),
        ({"deepspeed": "ds.json"}, "as a mapping"),
        ({"deepspeed": {}, "fsdp_config": {"version": 2}}, "training.fsdp is not"),
        ({"deepspeed": {"fp16": {"enabled": False}}}, "dtype says it"),
        ({"deepspeed": {**zero(), "optimizer": {"type": "Adam"}}}, "training.optim says it"),
        ({"deepspeed": {**zero(), "train_batch_size": 8}}, "batch_size says it"),
        ({"deepspeed": {**zero(), "tensor_parallel": {}}}, "tensor_parallel is not supported"),
        ({"deepspeed": zero(0)}, "stage is 0; expected 1, 2 or 3"),
        ({"deepspeed": {"steps_per_print": 1}}, "stage is None"),
        ({"deepspeed": zero(True)}, "stage is True"),
        ({"deepspeed": zero(3, offload_param={"device": "cpu"})}, "offload_param"),
        ({"deepspeed": zero(2, cpu_offload=True)}, "cpu_offload is True"),
        ({"deepspeed": zero(3, zero_quantized_weights=True)}, "zero_quantized_weights"),
        ({"deepspeed": zero(), "optim": "adamw_8bit"}, "needs whole tensors"),
    ],
)
def test_what_cannot_shard_is_refused(asked, said):
    with pytest.raises(ConfigError, match=said):
        check(asked)


def test_quantized_weights_and_half_precision_are_refused():
    with pytest.raises(ConfigError, match="quantize is '4bit'"):
        check({"fsdp": True}, quantize="4bit")
    with pytest.raises(ConfigError, match="Use bfloat16"):
        check({"fsdp": True}, dtype="float16")


def test_deepspeed_gets_what_other_settings_say():
    pytest.importorskip("deepspeed")
    asked = {**zero(3, offload_optimizer={"device": "none"}), "bf16": {"enabled": "auto"}}
    check({"deepspeed": asked})
    config = deepspeed_config({"deepspeed": {**asked, "gradient_clipping": "auto"}})
    assert config["zero_optimization"]["stage"] == 3
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == "auto"
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert deepspeed_config({}) is None
