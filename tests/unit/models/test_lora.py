"""One statement of which LoRA is supported: settings, fresh, stored and foreign adapters."""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from lcia.config import AssistantConfig
from lcia.data import Message
from lcia.errors import ConfigError, StoreError
from lcia.models import AdapterHost, load_model, resolve_dtype
from lcia.models.batches import behind_prefix, common_length, mask_of, padded, shares_prefixes
from lcia.models.host import RecentAnswers
from lcia.models.lora import RECORDS, SETTINGS, read_config
from lcia.serving.engine.bank import AdapterBank

FIELDS = [field.name for field in dataclasses.fields(LoraConfig)]
OTHERS = [name for name in FIELDS if name not in SETTINGS]
REWRITING = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "new"]


@pytest.fixture(scope="module")
def host(tiny_model) -> AdapterHost:
    return AdapterHost(load_model(str(tiny_model), dtype="float32"))


@pytest.fixture
def stored(host, tmp_path):
    """A stored adapter whose configuration says something else, too."""

    def make(**settings):
        folder = tmp_path / "adapter"
        host.new_adapter(LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder)
        host.clear()
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return folder

    return make


def answer_of(host, adapter=None):
    asked = [[Message(role="user", content="red 1")]]
    return host.generate(asked, [adapter], max_new_tokens=4)


def check(**adapter):
    AssistantConfig(model="m", adapter=adapter).check()


@pytest.mark.parametrize("name", OTHERS)
def test_every_field_that_makes_it_more_than_plain_lora_is_refused_by_name(name):
    value = "TOKEN_CLS" if name == "task_type" else "all" if name == "bias" else True
    with pytest.raises(ConfigError, match=rf"^adapter\.{name} ") as caught:
        check(**{name: value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", sorted(set(OTHERS) - RECORDS))
def test_a_field_that_says_its_default_is_no_reason_to_refuse(name):
    field = next(f for f in dataclasses.fields(LoraConfig) if f.name == name)
    is_made = field.default_factory is not dataclasses.MISSING
    check(**{name: field.default_factory() if is_made else field.default})


@pytest.mark.parametrize("start", [*REWRITING, "eva", "orthogonal"])
def test_a_start_that_changes_the_base_model_is_refused(start, host):
    with pytest.raises(ConfigError, match=rf"adapter\.init_lora_weights is '{start}'"):
        check(init_lora_weights=start)
    if start in REWRITING[:3]:
        before = {n: p.clone() for n, p in host.base.model.named_parameters()}
        with pytest.raises(ConfigError, match=f"init_lora_weights={start}"):
            host.new_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=start))
        after = dict(host.base.model.named_parameters())
        assert all(torch.equal(p, after[n]) for n, p in before.items())


@pytest.mark.parametrize("start", [True, False, "gaussian"])
def test_a_start_that_is_allowed_leaves_the_base_model_alone(start, host):
    check(init_lora_weights=start)
    before = answer_of(host), host.base.model.lm_head.weight.clone()
    host.new_adapter(LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=start))
    host.clear()
    assert answer_of(host) == before[0]
    assert torch.equal(host.base.model.lm_head.weight, before[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 2.5),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", 0),
        ("lora_alpha", -2),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_dropout", None),
    ],
)
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"adapter\.{key} is .*; expected a (whole )?number"):
        check(**{key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": "("}, "is '\\(', which is no regular expression"),
        ({"target_modules": 3}, "target_modules is 3; expected names"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set by peft"),
        ({"layers_to_transform": [0]}, "layers_to_transform needs a list .* 'all-linear'"),
        ({"exclude_modules": ["q_proj", 3]}, "exclude_modules is .*; expected names"),
        ({"rank_pattern": 3}, "rank_pattern is 3; expected modules and numbers"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj is 0; expected a whole number"),
        ({"rank_pattern": {"q_proj": "a"}}, r"rank_pattern\.q_proj is 'a'"),
        (
            {"alpha_pattern": {"q_proj": 0}},
            r"alpha_pattern\.q_proj is 0; expected a number above 0",
        ),
    ],
)
def test_patterns_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["query_key_value"]}, "query_key_value"),
        ({"target_modules": ["q_proj", "query"]}, "target_modules: 'query' meets none"),
        ({"target_modules": "none_such"}, "none_such"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens is no linear layer but Embedding"),
        ({"target_modules": ["q_proj", "self_attn"]}, "LlamaAttention"),
        ({"layers_to_transform": [1, 7], "target_modules": ["q_proj"]}, "layers_to_transform: 7"),
        ({"rank_pattern": {"qproj": 4}}, "rank_pattern: 'qproj' meets none"),
        ({"alpha_pattern": {"layers.9.q_proj": 4}}, "alpha_pattern: 'layers.9.q_proj'"),
    ],
)
def test_names_that_meet_nothing_are_said_and_leave_the_model_as_it_was(settings, message, host):
    before = [name for name, _ in host.base.model.named_modules()]
    with pytest.raises(ConfigError, match=message) as caught:
        host.new_adapter(LoraConfig(**{"target_modules": "all-linear", **settings}))
    assert str(caught.value).startswith("adapter: ")
    assert len(str(caught.value).splitlines()) == 1
    assert [name for name, _ in host.base.model.named_modules()] == before
    host.new_adapter(LoraConfig(target_modules=["q_proj"]))
    host.clear()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"of_a_later_peft": 3}, "of_a_later_peft"),
    ],
)
def test_a_stored_adapter_that_is_more_than_plain_lora_is_refused_at_every_door(
    settings, named, stored, host, tiny_model
):
    folder = stored(**settings)
    bank = AdapterBank(host.base.model, max_loaded=2)
    doors = [
        lambda: read_config(folder),
        lambda: answer_of(host, ("g1@0001", folder)),
        lambda: host.adapter_to_train(folder),
        lambda: bank.acquire("g1@0001", folder),
    ]
    for door in doors:
        with pytest.raises(StoreError, match=f"uses {named}; expected plain LoRA"):
            door()
    host.clear()


@pytest.mark.parametrize("start", ["eva", "orthogonal", "gaussian", False])
def test_how_a_stored_plain_adapter_once_started_does_not_matter(start, stored):
    assert read_config(stored(init_lora_weights=start)).r == 4


def user(text: str):
    return (Message(role="user", content=text),)


@pytest.fixture
def a_host(tiny_model) -> AdapterHost:
    return AdapterHost(load_model(str(tiny_model), dtype="float32"), max_loaded=2)


@pytest.fixture
def adapters(a_host, tmp_path):
    """Three adapters that answer differently."""
    folders = {}
    for i in range(3):
        torch.manual_seed(i)
        model = a_host.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1.0)
        model.save_pretrained(tmp_path / f"a{i}")
        folders[f"a{i}"] = tmp_path / f"a{i}"
    a_host.clear()
    return list(folders.items())


def ask(a_host, prompts, chosen):
    return a_host.generate([user(p) for p in prompts], chosen, max_new_tokens=6)


def test_a_mixed_batch_answers_as_each_adapter_alone(a_host, adapters):
    prompts = ["one", "a longer prompt", "two", "x"]
    chosen = [adapters[0], adapters[1], None, adapters[0]]
    alone = [ask(a_host, [p], [c])[0] for p, c in zip(prompts, chosen, strict=True)]
    assert ask(a_host, prompts, chosen) == alone
    assert ask(a_host, ["one"], [None]) != ask(a_host, ["one"], [adapters[0]]), (
        "adapters do something"
    )


def test_answers_do_not_depend_on_a_shared_beginning(a_host, adapters, monkeypatch):
    said = "Say the letter of the colour that comes next."
    prompts = [f"{said} {word}" for word in ("red", "a darker green", "b", "white and blue")]
    chosen = [adapters[0], adapters[1], None, adapters[0]]
    together = ask(a_host, prompts, chosen)
    monkeypatch.setattr("lcia.models.host.shares_prefixes", lambda model: False)
    assert together == ask(a_host, prompts, chosen)


def test_the_least_recently_used_adapter_leaves_memory(a_host, adapters):
    for adapter in (*adapters, adapters[1]):
        ask(a_host, ["one"], [adapter])
    assert list(a_host._loaded) == ["a2", "a1"]
    first = ask(a_host, ["one"], [adapters[0]])
    assert list(a_host._loaded) == ["a1", "a0"]
    a_host.clear()
    assert ask(a_host, ["one"], [adapters[0]]) == first


def test_a_key_with_another_folder_is_loaded_anew(a_host, adapters):
    (_, folder_0), (_, folder_1) = adapters[:2]
    one = ask(a_host, ["one"], [("k", folder_0)])
    two = ask(a_host, ["one"], [("k", folder_1)])
    assert two == ask(a_host, ["one"], [adapters[1]])
    assert one == ask(a_host, ["one"], [adapters[0]])


def test_clearing_gives_the_base_model_back(a_host, adapters, tiny_model):
    ask(a_host, ["one"], [adapters[0]])
    a_host.clear()
    fresh = AdapterHost(load_model(str(tiny_model), dtype="float32"))
    names = [name for name, _ in a_host.base.model.named_parameters()]
    assert not any("lora" in name for name in names)
    assert ask(a_host, ["one"], [None]) == ask(fresh, ["one"], [None])


def test_the_base_models_answers_are_kept_up_to_a_bound():
    kept = RecentAnswers(3)
    for request in range(10):
        kept.keep(request, str(request))
        assert len(kept) == min(3, request + 1)
        assert kept.get(request) == str(request)
    assert kept.get(7) == "7"
    kept.keep(10, "10")
    assert kept.get(8) is None, "the one that was not used for longest left"
    assert [kept.get(request) for request in (7, 9, 10)] == ["7", "9", "10"]


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bfloat16"),
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_goes_by_the_processor(cpu, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert resolve_dtype("auto") == dtype


def test_other_dtypes_are_refused():
    with pytest.raises(ConfigError, match="'int8' is not known"):
        resolve_dtype("int8")


SHARED = list(range(100, 120))


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[*SHARED, 1], [*SHARED, 2, 3], [*SHARED, 2]], 20),
        ([[*SHARED, 1], SHARED], 19),  # every row keeps a token of its own
        ([SHARED, SHARED], 19),
        ([[*SHARED, 1], [*SHARED[:15], 1, 2]], 0),  # fewer than it is worth
        ([[*SHARED, 1]], 0),
        ([[1], [2]], 0),
    ],
)
def test_the_common_beginning_leaves_each_row_a_token(rows, length):
    assert common_length(rows) == length


def test_padding_moves_behind_the_beginning():
    rows = [[*SHARED, 1], [*SHARED, 2, 3, 4]]
    moved, length = behind_prefix(
        {"input_ids": padded(rows, value=0), "attention_mask": mask_of(rows)}, pad_id=0
    )
    assert length == 20
    assert moved["input_ids"].tolist() == [[*SHARED, 0, 0, 1], [*SHARED, 2, 3, 4]]
    assert moved["attention_mask"].tolist() == [[1] * 20 + [0, 0, 1], [1] * 23]


@pytest.mark.parametrize(
    ("kind", "options", "shares"),
    [
        ("llama", {}, True),
        ("gemma3_text", {"sliding_window": 8}, False),
        ("mamba", {}, False),
        ("bamba", {}, False),
    ],
)
def test_only_models_that_keep_all_tokens_share(kind, options, shares):
    config = AutoConfig.for_model(kind, num_hidden_layers=6, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shares_prefixes(model) is shares
