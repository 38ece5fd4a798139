"""Settings: read once, checked before anything is done."""

import dataclasses
import os

import pytest
from transformers import TrainingArguments

from lcia.config import (
    AssistantConfig,
    StreamConfig,
    check_training,
    load_stream_config,
    parse_config,
    todays_names,
)
from lcia.config.parsing import load_yaml
from lcia.config.sharding import deepspeed_config, fsdp_options, without_sharding
from lcia.config.training import REASONS, SET_BY_LCIA, WORKS
from lcia.errors import ConfigError, printable
from lcia.registry import METHODS


def read(tmp_path, text, overrides=()):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_stream_config(path, overrides)


MINIMAL = "model: m\nstream: builtin:skills\noutput: out\n"


def test_the_smallest_stream_file_has_defaults_for_the_rest(tmp_path):
    config = read(tmp_path, MINIMAL)
    assert config.method == {"name": "lcia"}
    assert config.seeds == (0,)
    assert config.resolve_grouping().groups == "similar"


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    text = MINIMAL + "training: {learning_rate: 1e-4}\n"
    assert read(tmp_path, text).training["learning_rate"] == 1e-4
    config = read(tmp_path, text, ["training.learning_rate=3E-5"])
    assert config.training["learning_rate"] == 3e-5


def test_overrides_change_only_what_they_name(tmp_path):
    config = read(tmp_path, MINIMAL + "adapter: {r: 4, lora_alpha: 8}\n", ["adapter.r=2"])
    assert config.adapter == {"r": 2, "lora_alpha": 8}


def test_settings_without_a_name_are_those_of_the_default():
    config = AssistantConfig(model="m", method={"remembered": 0}, rule={"share": 0.3})
    assert config.method == {"name": "lcia", "remembered": 0}
    assert config.rule == {"name": "horizon", "share": 0.3}
    assert config.build_rule().share == 0.3
    with pytest.raises(ConfigError, match=r"rule\.beta is not a field of Horizon. Choices: share"):
        AssistantConfig(model="m", rule={"beta": 0.3}).check()


@pytest.mark.parametrize("word", ["off", "false", "'off'"])
def test_grouping_off_is_one_group_for_all(tmp_path, word):
    config = read(tmp_path, MINIMAL + f"grouping: {word}\n")
    assert config.resolve_grouping().groups == "one"


def test_grouping_is_as_the_method_prefers(tmp_path):
    fields = "grouping: {threshold: 0.5}\n"
    for extra in ("", fields):
        for method, groups in (("sequential", "one"), ("lcia", "similar")):
            config = read(tmp_path, MINIMAL + f"method: {method}\n" + extra)
            assert config.resolve_grouping().groups == groups


def test_fields_of_grouping_say_how_a_word_says_whether(tmp_path):
    config = read(tmp_path, MINIMAL + "grouping: {threshold: 0.5, groups: per_task}\n")
    found = config.resolve_grouping()
    assert (found.threshold, found.groups) == (0.5, "per_task")
    assert read(tmp_path, MINIMAL + "grouping: per_task\n").grouping.groups == "per_task"


def test_earlier_names_are_read_and_a_warning_says_todays(caplog):
    method, rule = {"name": "lcia", "memory": 0.5}, {"name": "next", "scale": 0.5}
    tree = {"model": "m", "method": method, "rule": rule}
    config = parse_config(AssistantConfig, tree, where="x")
    assert config.method == {"name": "lcia", "remembered": 0.5}
    assert config.rule == {"name": "toolkit", "scale": 0.5}
    assert [record.message for record in caplog.records] == [
        "method.memory is now called method.remembered; write remembered.",
        "rules: 'next' is now called 'toolkit'; write toolkit.",
    ]
    caplog.clear()
    assert parse_config(AssistantConfig, todays_names(tree), where="x") == config
    assert not caplog.records, "nobody can edit what is stored"
    both = {**tree, "method": {**method, "remembered": 0.5}}
    with pytest.raises(ConfigError, match="memory is now called remembered, and both are set"):
        parse_config(AssistantConfig, both, where="x")
    other = {**tree, "method": {"name": "mine", "memory": 1}}
    assert parse_config(AssistantConfig, other, where="x").method["memory"] == 1


def test_settings_survive_being_stored():
    config = AssistantConfig(model="m", grouping={"threshold": 0.3}, rule="paper", gate={})
    stored = config.model_dump(mode="json")
    assert parse_config(AssistantConfig, stored, where="x") == config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metod: lcia", r"s\.yaml: metod is not a field of lcia\. Nearest: method"),
        ("seeds: [a]", r"seeds\.0 is 'a'"),
        ("tasks: [{name: a, train: a.jsonl}]", "expected exactly one of tasks, stream and superni"),
        ("held_out: [{name: a, tran: a}]", r"held_out\.tasks\.0\.tran is not .* Nearest: train"),
        ("held_out: {superni: {rot: a}}", r"held_out\.superni\.rot is not .* Nearest: root"),
        ("held_out: {}", "held_out: expected exactly one of tasks, stream and superni"),
        ("generation: {batchsize: 1}", "Nearest: batch_size"),
        ("grouping: {threshold: 2}", r"grouping\.threshold is 2"),
        ("method: {name: fixed_ema, bet: 1}", r"method\.bet is not a setting of FixedEMA"),
        ("rule: {name: papr}", "Nearest: paper"),
        ("generation: {batch_size: 0}", r"generation\.batch_size is 0"),
        ("training: {output_dir: x}", r"training\.output_dir is set by lcia"),
        ("- nonsense", "is not YAML"),
    ],
)
def test_problems_are_named_with_their_place(tmp_path, line, expected):
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, MINIMAL + line + "\n")


def test_every_problem_of_a_file_is_listed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, MINIMAL + "sed: 1\ndtpe: x\n")
    assert len(str(caught.value).splitlines()) == 2


def test_every_recipe_loads():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert isinstance(load_stream_config(recipe), StreamConfig)


STREAM = """model: m
stream: builtin:skills
output: out
training: {num_train_epochs: 3, learning_rate: 1e-3}
grouping: {aggregate: mean}
"""


def test_methods_that_average_are_crossed_with_the_rules_others_run_once(tmp_path):
    text = STREAM + (
        "methods: [sequential, merge, lcia]\n"
        "rules: [release, {name: fixed, beta: 0.9, label: fixed90}]\n"
    )
    found = read(tmp_path, text).variants()
    assert list(found) == ["sequential", "merge", "lcia-release", "lcia-fixed90"]
    assert found["lcia-fixed90"].rule == {"name": "fixed", "beta": 0.9}
    assert found["lcia-fixed90"].method == {"name": "lcia"}


def test_groupings_are_crossed_with_all_methods_and_stand_over_the_streams(tmp_path):
    text = STREAM + (
        "methods: [sequential, single, lcia]\n"
        "groupings: [off, on, {threshold: 0.3, label: t30}]\n"
        "rules: [paper]\n"
    )
    found = {k: v.resolve_grouping() for k, v in read(tmp_path, text).variants().items()}
    assert list(found) == [
        *("sequential-ungrouped", "sequential-grouped", "sequential-t30", "single"),
        *("lcia-paper-ungrouped", "lcia-paper-grouped", "lcia-paper-t30"),
    ]
    own = ["one", "similar", "similar"]
    assert [c.groups for c in found.values()] == [*own, "per_task", *own]
    assert (found["lcia-paper-t30"].threshold, found["lcia-paper-t30"].aggregate) == (0.3, "mean")


def test_an_entry_of_methods_carries_settings_of_its_own(tmp_path):
    text = STREAM + (
        "adapter: {r: 4}\n"
        "methods:\n"
        "  - lcia\n"
        "  - {name: lcia, label: own, rule: {name: fixed, beta: 0.5}, grouping: {threshold: 0.3},\n"
        "     training: {learning_rate: 5e-4}, adapter: {lora_alpha: 8}}\n"
        "  - {name: fixed_ema, label: plain, beta: 0.9, grouping: off}\n"
        "rules: [paper, next]\n"
        "seed: 7\n"
    )
    config = read(tmp_path, text)
    found = config.variants()
    assert list(found) == ["lcia-paper", "lcia-next", "own", "plain"]
    assert found["lcia-next"].rule == {"name": "toolkit"}, "renamed; runs keep their labels"
    own = found["own"]
    assert own.rule == {"name": "fixed", "beta": 0.5}
    assert (own.grouping.threshold, own.grouping.aggregate) == (0.3, "mean")
    assert own.training == {"num_train_epochs": 3, "learning_rate": 5e-4}
    assert own.adapter == {"r": 4, "lora_alpha": 8}
    assert own.method == {"name": "lcia"}
    assert found["plain"].method == {"name": "fixed_ema", "beta": 0.9}
    assert found["plain"].grouping.groups == "one"
    assert config.seeds == (7,)
    assert {variant.seed for variant in found.values()} == {7}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("methods: [sequential]\nrules: [paper]", "rules: no method of this stream uses them"),
        ("rules: [papr]", r"s\.yaml: 'papr' is not one of the rules.*Nearest: paper"),
        ("methods: [lcia, lcia]", "the label 'lcia' stands twice"),
        ("methods: [lcia]\nrules: [paper, paper]", "the label 'lcia-paper' stands twice"),
        ("methods: [{name: lcia, label: a/b}]", "label 'a/b': expected letters"),
        ("methods: [{name: sequential, rule: paper}]", "sequential does not use the rule"),
        ("methods: [{name: lcia, training: {learning_rat: 1}}]", "lcia: training.learning_rat is"),
        ("methods: [{name: lcia, training: 3}]", "lcia: training is 3"),
        ("methods: [{name: lcia, grouping: {treshold: 1}}]", "lcia: grouping.treshold is not"),
        ("methods: [{name: lcia, adapter: {rank: 1}}]", "lcia: adapter.rank is not a field of Lo"),
        ("groupings: [{threshold: 0.3}]", "has no label"),
        ("groupings: [maybe]", "grouping is 'maybe'"),
        ("seeds: [0, 1, 0]", "has a seed twice"),
        ("seed: 1\nseeds: [0]", "seed and seeds are both set"),
    ],
)
def test_problems_of_the_lists_are_named_before_anything_runs(tmp_path, lines, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        read(tmp_path, MINIMAL + lines + "\n")
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_stored_spells_out_every_default():
    config = AssistantConfig(model="m", training={"learning_rate": 1e-3})
    stored = config.resolved()
    assert stored.method == {"name": "lcia", **METHODS.get("lcia").settings}
    assert stored.rule == {"name": "horizon", "share": 0.5, "max_steps": None}
    assert stored.grouping.groups == "similar"
    assert (stored.adapter["r"], stored.training["learning_rate"]) == (8, 1e-3)
    assert stored.resolved() == stored
    stored.check()


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nx: !!int foo", "expected a value of type int, found 'foo' in line 2, column 4."),
        ("x: !!bool maybe", "expected a value of type bool, found 'maybe' in line 1"),
        ("x: !!timestamp 1", "expected a value of type timestamp, found '1'"),
        ("x: 2020-13-45", "expected a value of type timestamp, found '2020-13-45'"),
        ("seed: " + "9" * 5000, "expected a value of type int, found '9999"),
        ('x: !!python/object/apply:os.system ["true"]', "could not determine a constructor for"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice in one mapping in line 2, column 1."),
        ("training: {a: 1, a: 2}", "the key 'a' stands twice in one mapping"),
        ("1: 2", "the key 1 is no text. Put it in quotes."),
        ("training: {on: 2}", "the key True is no text. Put it in quotes."),
        ("methods: &a [*a]", "is nested more than 50 deep."),
        ("x: " + "[" * 100_000, "brackets are nested more than 50 deep in line 1"),
        ("x: " + "[" * 60 + "]" * 60, "brackets are nested more than 50 deep in line 1"),
        ("- " * 2000 + "x", "is nested more than 50 deep."),
        (BOMB, "holds more than 100,000 values, those behind aliases counted each time."),
        ("? [a, b]\n: c", "found unhashable key in line 1"),
        ("x: {", "is not YAML: expected the node content, but found '<stream end>' in line 1"),
    ],
)
def test_yaml_that_cannot_be_used_is_told_in_one_line(tmp_path, text, said):
    path = tmp_path / "stream.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 300


def test_a_merged_key_may_be_overridden(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert load_yaml(path)["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("value", ["!!int foo", "&a [*a]", "{1: 2}", "[", "2020-13-45"])
def test_a_value_of_set_is_read_as_carefully(value):
    with pytest.raises(ConfigError, match="--set x="):
        parse_config(StreamConfig, {}, where="stream", overrides=[f"x={value}"])


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_bytes("model: x\noutput: größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"stream.yaml:2: byte 20 of the file is not UTF-8"):
        load_yaml(path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text("\ufeffseed: 1\n", encoding="utf-8")
    assert load_yaml(path) == {"seed": 1}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ConfigError, match=r"it is a pipe or a device\. Write its content to a file"
    ):
        load_yaml(tmp_path / "pipe")


def test_what_stands_in_a_file_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x00\r\x85\té\n") == "a\\x1b[2Jb\\x00\\x0d\\x85\té\n"
    long = printable("x" * 10_000 + ": expected y.\nz")
    assert len(long) < 1_700
    assert long.endswith("x: expected y.\nz")


def test_a_stream_without_any_seed_is_refused():
    tree = {"model": "m", "stream": "builtin:skills", "output": "out", "seeds": []}
    with pytest.raises(ConfigError, match=r"stream: seeds is .*at least 1 item"):
        parse_config(StreamConfig, tree, where="stream")


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
