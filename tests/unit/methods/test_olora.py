"""O-LoRA: the penalty, what is frozen, and the sum of all LoRAs as one plain adapter."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lcia.errors import ConfigError
from lcia.methods.olora import OLoRA

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(create, colours, shades):
    """The adapters after one task and after two, trained with weight decay."""
    learner = create("olora", training={"weight_decay": 0.5, "num_train_epochs": 2})
    learner.run([colours, shades])
    return [version.adapters["g1"][1] for version in learner.store.history()]


def test_the_rank_grows_and_the_earlier_lora_stays_to_the_bit(folders):
    configs = [LoraConfig.from_pretrained(folder) for folder in folders]
    assert [(config.r, config.lora_alpha) for config in configs] == [(4, 8), (8, 16)]
    first, both = (load_file(folder / WEIGHTS) for folder in folders)
    assert first.keys() == both.keys()
    moved = 0.0
    for name, old in first.items():
        dim = 0 if ".lora_A." in name else 1
        kept, new = both[name].split(4, dim=dim)
        assert torch.equal(kept, old)
        moved += new.abs().sum().item() if dim else 0.0
    assert moved > 0, "the new B was trained"


def test_the_stored_adapter_acts_as_the_sum_of_its_loras(folders, tiny_model):
    ids = torch.arange(4, 24).reshape(2, 10)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    plain = base(ids).logits
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    weights = load_file(folders[1] / WEIGHTS)
    for name, down in weights.items():
        if ".lora_A." not in name:
            continue
        module = expected.get_submodule(
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        )
        up = weights[name.replace("lora_A", "lora_B")]
        with torch.no_grad():  # each LoRA with the scale lora_alpha / r it was configured with
            for a, b in zip(down.split(4, dim=0), up.split(4, dim=1), strict=True):
                module.weight += 8 / 4 * b.double() @ a.double()
    model = PeftModel.from_pretrained(base, folders[1]).double().eval()
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-9, atol=1e-9)
    assert (expected(ids).logits - plain).abs().max() > 1e-3


def test_the_penalty_and_its_gradient_are_the_formula_s(folders, built):
    opened = built("olora", {"strength": 0.5, "shrink": 0.25}, start=folders[0])

    class Calls:
        def add_callback(self, callback):
            self.callback = callback

    opened.method.attach(Calls(), opened.context)
    loss = opened.method.extra_loss(opened.model, {}, None)
    old = load_file(folders[0] / WEIGHTS)
    overlap, size, slopes = 0.0, 0.0, {}
    for name, parameter in opened.context.parameters.items():
        stored = old[name.replace(".default", "")].double()
        new = parameter.detach().double()
        new = new[4:] if ".lora_A." in name else new[:, 4:]
        size += new.norm().item()
        slope = 0.25 * new / new.norm() if new.any() else torch.zeros_like(new)
        if ".lora_A." in name:
            products = stored @ new.T
            overlap += products.abs().sum().item()
            slope = slope + 0.5 * products.sign().T @ stored
        slopes[name] = slope
    assert loss.item() == pytest.approx(0.5 * overlap + 0.25 * size, rel=1e-5)
    loss.backward()
    for name, parameter in opened.context.parameters.items():
        dim = 0 if ".lora_A." in name else 1
        kept, new = parameter.grad.split(4, dim=dim)
        assert not kept.any(), "nothing pulls at the earlier LoRA"
        torch.testing.assert_close(new.double(), slopes[name], rtol=1e-4, atol=1e-6)


def test_training_makes_the_new_lora_more_orthogonal(create, colours, shades):
    overlaps = {}
    for strength in (0.0, 0.5):
        learner = create({"name": "olora", "strength": strength}, training={"num_train_epochs": 4})
        learner.run([colours, shades])
        weights = load_file(learner.store.current.adapters["g1"][1] / WEIGHTS)
        overlaps[strength] = sum(
            (a[:4] @ a[4:].T).abs().sum().item() for n, a in weights.items() if ".lora_A." in n
        )
    assert overlaps[0.5] < overlaps[0.0] / 2


def test_variants_of_lora_that_do_not_add_up_are_refused(host):
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True}
    with pytest.raises(ConfigError, match=r"adapter\.use_rslora is set; olora stacks"):
        OLoRA().open(host, None, adapter)
