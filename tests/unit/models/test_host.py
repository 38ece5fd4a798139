"""One batch may mix adapters; memory is bounded; nothing trained stays behind."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from lcia.data import Message
from lcia.errors import ConfigError
from lcia.models import AdapterHost, load_model, resolve_dtype
from lcia.models.batches import behind_prefix, common_length, mask_of, padded, shares_prefixes
from lcia.models.host import RecentAnswers


def user(text: str):
    return (Message(role="user", content=text),)


@pytest.fixture
def host(tiny_model) -> AdapterHost:
    return AdapterHost(load_model(str(tiny_model), dtype="float32"), max_loaded=2)


@pytest.fixture
def adapters(host, tmp_path):
    """Three adapters that answer differently."""
    folders = {}
    for i in range(3):
        torch.manual_seed(i)
        model = host.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1.0)
        model.save_pretrained(tmp_path / f"a{i}")
        folders[f"a{i}"] = tmp_path / f"a{i}"
    host.clear()
    return list(folders.items())


def ask(host, prompts, chosen):
    return host.generate([user(p) for p in prompts], chosen, max_new_tokens=6)


def test_a_mixed_batch_answers_as_each_adapter_alone(host, adapters):
    prompts = ["one", "a longer prompt", "two", "x"]
    chosen = [adapters[0], adapters[1], None, adapters[0]]
    alone = [ask(host, [p], [c])[0] for p, c in zip(prompts, chosen, strict=True)]
    assert ask(host, prompts, chosen) == alone
    assert ask(host, ["one"], [None]) != ask(host, ["one"], [adapters[0]]), "adapters do something"


def test_answers_do_not_depend_on_a_shared_beginning(host, adapters, monkeypatch):
    said = "Say the letter of the colour that comes next."
    prompts = [f"{said} {word}" for word in ("red", "a darker green", "b", "white and blue")]
    chosen = [adapters[0], adapters[1], None, adapters[0]]
    together = ask(host, prompts, chosen)
    monkeypatch.setattr("lcia.models.host.shares_prefixes", lambda model: False)
    assert together == ask(host, prompts, chosen)


def test_the_least_recently_used_adapter_leaves_memory(host, adapters):
    for adapter in (*adapters, adapters[1]):
        ask(host, ["one"], [adapter])
    assert list(host._loaded) == ["a2", "a1"]
    first = ask(host, ["one"], [adapters[0]])
    assert list(host._loaded) == ["a1", "a0"]
    host.clear()
    assert ask(host, ["one"], [adapters[0]]) == first


def test_a_key_with_another_folder_is_loaded_anew(host, adapters):
    (_, folder_0), (_, folder_1) = adapters[:2]
    one = ask(host, ["one"], [("k", folder_0)])
    two = ask(host, ["one"], [("k", folder_1)])
    assert two == ask(host, ["one"], [adapters[1]])
    assert one == ask(host, ["one"], [adapters[0]])


def test_clearing_gives_the_base_model_back(host, adapters, tiny_model):
    ask(host, ["one"], [adapters[0]])
    host.clear()
    fresh = AdapterHost(load_model(str(tiny_model), dtype="float32"))
    names = [name for name, _ in host.base.model.named_parameters()]
    assert not any("lora" in name for name in names)
    assert ask(host, ["one"], [None]) == ask(fresh, ["one"], [None])


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
