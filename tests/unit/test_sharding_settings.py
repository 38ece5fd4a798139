"""Settings that spread a model: translated or refused, never ignored."""

import pytest

from lcia.config import AssistantConfig
from lcia.config.sharding import deepspeed_config, fsdp_options, without_sharding
from lcia.errors import ConfigError


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
    asked = {**zero(3, offload_optimizer={"device": "none"}), "bf16": {"enabled": "auto"}}
    check({"deepspeed": asked})
    config = deepspeed_config({"deepspeed": {**asked, "gradient_clipping": "auto"}})
    assert config["zero_optimization"]["stage"] == 3
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == "auto"
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert deepspeed_config({}) is None
