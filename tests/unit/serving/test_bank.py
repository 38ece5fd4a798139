"""The stacked product equals peft; memory is bounded; what is not plain LoRA is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from lcia.data import Message
from lcia.errors import StoreError
from lcia.models import load_model
from lcia.models.host import TRAINED
from lcia.models.lora import EXPERT_ROUTERS, add_expert_routers, read_config, save_expert_routers
from lcia.serving.engine.bank import AdapterBank, read_factors


@pytest.fixture
def bank(base):
    bank = AdapterBank(base.model, max_loaded=2)
    yield bank
    bank.detach()


def logits(model, ids, **options):
    with torch.inference_mode():
        return model(input_ids=ids, **options).logits


def test_a_mixed_batch_equals_peft_row_by_row(bank, base, adapters, tiny_model):
    ids = torch.randint(4, 250, (7, 9), generator=torch.Generator().manual_seed(0))
    rows = [None, *adapters, adapters[0], None]
    for adapter in adapters:
        bank.acquire(*adapter)
    bank.select([adapter and adapter[0] for adapter in rows])
    found = logits(base.model, ids)
    bank.select([None] * 7)
    torch.testing.assert_close(logits(base.model, ids), logits(plain(tiny_model), ids))
    bank.select([adapter and adapter[0] for adapter in rows])
    torch.testing.assert_close(logits(base.model, ids), found, rtol=0, atol=0)
    for row, adapter in enumerate(rows):
        model = plain(tiny_model)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter[1])
        torch.testing.assert_close(found[row], logits(model.eval(), ids)[row])


def plain(tiny_model):
    return load_model(str(tiny_model), dtype="float32").model


def test_every_adapter_changes_something(bank, base, adapters):
    ids = torch.arange(4, 13)[None]
    seen = [logits(base.model, ids)]
    for adapter in adapters:
        bank.acquire(*adapter)
        bank.select([adapter[0]])
        seen.append(logits(base.model, ids))
    for i, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-3 for other in seen[:i])


def test_idle_adapters_leave_and_used_ones_stay(bank, adapters):
    for adapter in adapters:
        bank.acquire(*adapter)
    assert len(bank.loaded) == 4, "in use, whatever the bound"
    for key in [key for key, _ in adapters]:
        bank.release(key)
    assert bank.loaded == [adapters[2][0], adapters[3][0]]
    assert bank.loads == 4
    bank.acquire(*adapters[2])
    assert (bank.loads, bank.loaded[-1]) == (4, adapters[2][0])
    assert bank.nbytes == sum(
        t.nbytes for f in bank._loaded.values() for pair in f.modules.values() for t in pair
    )


def test_hundreds_of_adapters_pass_through(bank, base, adapters):
    ids = torch.arange(4, 9)[None]
    expected = {}
    for i in range(200):
        key, folder = f"g{i}@0001", adapters[i % 4][1]
        bank.acquire(key, folder)
        bank.select([key])
        found = logits(base.model, ids)
        torch.testing.assert_close(found, expected.setdefault(i % 4, found))
        bank.release(key)
        assert len(bank.loaded) <= 2
        assert len(bank._stacked) <= 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
    ],
)
def test_what_is_not_plain_lora_is_refused(bank, make_adapter, tmp_path, settings, named):
    folder = make_adapter(tmp_path / "a")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(StoreError, match=named):
        bank.acquire("a@0001", folder)
    assert not bank.loaded


def test_damaged_and_foreign_adapters_are_refused(bank, adapters, tmp_path):
    with pytest.raises(StoreError, match="not an adapter"):
        read_config(tmp_path / "missing")
    folder = tmp_path / "a"
    shutil.copytree(adapters[0][1], folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "projector.weight": torch.zeros(2)}, weights)
    with pytest.raises(StoreError, match=r"holds projector\.weight, which is no LoRA matrix"):
        bank.acquire("a@0001", folder)
    wide = {n: torch.zeros(t.shape[0], 99) if "lora_A" in n else t for n, t in tensors.items()}
    save_file(wide, weights)
    with pytest.raises(StoreError, match="99 -> "):
        bank.acquire("a@0001", folder)
    weights.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="cannot be read"):
        bank.acquire("a@0001", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(StoreError, match="IA3"):
        bank.acquire("a@0001", folder)


def test_gated_experts_equal_peft_in_a_mixed_batch(base, host, adapters, start, tmp_path):
    """A mixture of experts beside plain adapters, against the hooks of ``AdapterHost``."""
    torch.manual_seed(5)
    model = host.new_adapter(LoraConfig(r=6, target_modules="all-linear"))
    add_expert_routers(model, experts=3, adapter=TRAINED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "expert_routers" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    save_expert_routers(model, tmp_path)
    host.clear()
    mixed = ("mixed@0001", tmp_path)
    rows = [mixed, adapters[0], None, mixed]
    prompts = ["one", "a longer prompt", "two", "three of them"]
    expected = host.generate(
        [(Message(role="user", content=text),) for text in prompts], rows, max_new_tokens=12
    )
    host.clear()
    asker = start(base)
    jobs = [asker.submit(text, row) for text, row in zip(prompts, rows, strict=True)]
    assert [asker.read(job)[0].strip() for job in jobs] == expected
    (tmp_path / EXPERT_ROUTERS).unlink()
    assert asker.ask("one", ("plain@0001", tmp_path)).strip() != expected[0]


def test_factors_hold_the_scaling(adapters):
    factors = read_factors(adapters[2][1], dtype=torch.float32, device="cpu")
    stored = load_file(adapters[2][1] / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    up = stored[f"base_model.model.{name}.lora_B.weight"]
    torch.testing.assert_close(factors.modules[name][1], up.T * 5 / 3**0.5)
    assert factors.rank == 3


def altered(folder, target, change):
    """A copy of an adapter whose tensors were changed."""
    shutil.copytree(folder, target)
    weights = target / "adapter_model.safetensors"
    save_file({name: change(name, t) for name, t in load_file(weights).items()}, weights)
    return target


def test_an_adapter_with_values_that_are_not_finite_is_refused(bank, adapters, tmp_path):
    def spoil(name, tensor):
        if "layers.1.mlp.down_proj.lora_B" in name:
            tensor[0, 0] = float("nan")
        return tensor

    folder = altered(adapters[0][1], tmp_path / "nan", spoil)
    with pytest.raises(StoreError, match=r"layers\.1\.mlp\.down_proj holds values that are not"):
        bank.acquire("nan@0001", folder)


def test_an_adapter_without_matrices_is_refused(bank, adapters, tmp_path):
    folder = tmp_path / "empty"
    shutil.copytree(adapters[0][1], folder)
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(StoreError, match="holds no LoRA matrices"):
        bank.acquire("empty@0001", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be read"):
        bank.acquire("empty@0001", folder)


@pytest.mark.parametrize(
    ("routers", "named"),
    [
        ({"model.layers.0.mlp.up_proj": torch.zeros(2, 31)}, "no expert router"),
        ({"model.layers.0.mlp.up_proj": torch.zeros(3, 32)}, "3 experts, but rank 4"),
        ({"lm_head_of_another": torch.zeros(2, 32)}, "no expert router"),
    ],
)
def test_expert_routers_that_fit_no_layer_are_refused(bank, adapters, tmp_path, routers, named):
    folder = tmp_path / "mixed"
    shutil.copytree(adapters[0][1], folder)
    save_file({f"base_model.model.{n}": t for n, t in routers.items()}, folder / EXPERT_ROUTERS)
    with pytest.raises(StoreError, match=named):
        bank.acquire("mixed@0001", folder)


def test_what_one_adapter_overflows_to_stays_in_its_own_rows(bank, base, adapters, tmp_path):
    ids = torch.randint(4, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    rows = [None, adapters[1], adapters[0]]
    for adapter in adapters[:2]:
        bank.acquire(*adapter)
    bank.select([adapter and adapter[0] for adapter in rows])
    expected = logits(base.model, ids)
    huge = altered(adapters[0][1], tmp_path / "huge", lambda _, t: t.sign() * 1e38)
    bank.acquire("huge@0001", huge)
    bank.select([adapter and adapter[0] for adapter in rows[:2]] + ["huge@0001"])
    found = logits(base.model, ids)
    assert not found[2].isfinite().all()
    torch.testing.assert_close(found[:2], expected[:2])


def test_a_stack_that_failed_in_the_middle_is_made_again(bank, base, adapters, monkeypatch):
    ids = torch.arange(4, 13)[None]
    bank.acquire(*adapters[0])
    bank.select([adapters[0][0]])
    expected = logits(base.model, ids)
    bank.acquire(*adapters[1])
    site = list(bank._sites.values())[3]
    with monkeypatch.context() as patch:
        patch.setattr(site, "stack", lambda *_, **__: torch.empty(1 << 60))
        with pytest.raises(RuntimeError, match="memory"):
            bank.select([adapters[1][0]])
    bank.select([adapters[0][0]])
    torch.testing.assert_close(logits(base.model, ids), expected)
