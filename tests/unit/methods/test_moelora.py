"""The mixture of LoRA experts: its expert routers, its sum, and how it is loaded to answer."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lcia.data import Message
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, merge_groups
from lcia.methods.olora import OLoRA
from lcia.models.experts import EXPERT_ROUTERS, load_expert_routers

WEIGHTS = "adapter_model.safetensors"
IDS = torch.arange(4, 24).reshape(2, 10)


@pytest.fixture(scope="module")
def store(create, colours, numbers):
    learner = create(
        {"name": "moelora", "experts": 3},
        grouping="on",
        training={"num_train_epochs": 4},
        adapter={"r": 12, "lora_alpha": 24},
    )
    learner.run([colours, numbers])
    return learner.store


def loaded(tiny_model, folder, *, routed=True):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, folder)
    if routed:
        load_expert_routers(model, folder, adapter="default", trainable=False)
    return model.eval()


def test_expert_routers_are_trained_and_stored_beside_a_plain_adapter(store, tiny_model):
    _, folder = store.current.adapters["g1"]
    routers = load_file(folder / EXPERT_ROUTERS)
    assert all(router.shape[0] == 3 and router.any() for router in routers.values())
    model = loaded(tiny_model, folder)
    for name, router in routers.items():
        down = model.get_submodule(name).lora_A["default"]
        x = torch.randn(5, down.in_features)
        plain = x @ down.weight.T
        shares = (down(x) / plain).detach().unflatten(-1, (3, 4))
        torch.testing.assert_close(shares.std(-1), torch.zeros(5, 3), rtol=0, atol=1e-4)
        torch.testing.assert_close(shares.mean(-1).sum(-1), torch.ones(5), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            shares.mean(-1), (x @ router.T).softmax(-1), rtol=1e-3, atol=1e-4
        )


def test_each_token_gets_its_own_mixture_of_experts(store, tiny_model):
    _, folder = store.current.adapters["g1"]
    weights, routers = load_file(folder / WEIGHTS), load_file(folder / EXPERT_ROUTERS)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    for name, router in routers.items():
        downs = weights[f"{name}.lora_A.weight"].double().split(4, dim=0)
        ups = weights[f"{name}.lora_B.weight"].double().split(4, dim=1)

        def add_experts(module, inputs, output, router=router, downs=downs, ups=ups):
            (x,) = inputs
            shares = (x @ router.double().T).softmax(-1)
            experts = [8 / 4 * x @ a.T @ b.T for a, b in zip(downs, ups, strict=True)]
            return output + sum(shares[..., i, None] * experts[i] for i in range(3))

        expected.get_submodule(name.removeprefix("base_model.model.")).register_forward_hook(
            add_experts
        )
    found = loaded(tiny_model, folder)(IDS).logits.double()
    torch.testing.assert_close(found, expected(IDS).logits, rtol=1e-4, atol=1e-4)
    plain = loaded(tiny_model, folder, routed=False)(IDS).logits.double()
    assert (found - plain).abs().max() > 1e-3


def test_with_equal_gates_it_is_the_mean_of_the_experts_a_plain_lora_scaled(
    store, tiny_model, tmp_path
):
    _, folder = store.current.adapters["g1"]
    equal = loaded(tiny_model, folder, routed=False)
    zeros = {
        name: torch.zeros_like(router)
        for name, router in load_file(folder / EXPERT_ROUTERS).items()
    }
    save_file(zeros, tmp_path / EXPERT_ROUTERS)
    load_expert_routers(equal, tmp_path, adapter="default", trainable=False)
    scaled = loaded(tiny_model, folder, routed=False)
    for module in scaled.modules():
        if hasattr(module, "lora_A"):
            assert module.scaling["default"] == 2.0, "lora_alpha / r of one expert"
            module.scaling["default"] /= 3
    torch.testing.assert_close(equal(IDS).logits, scaled(IDS).logits, rtol=1e-4, atol=1e-5)


def test_in_a_batch_of_mixed_adapters_each_prompt_has_its_own_expert_routers(
    store, host, create, colours
):
    plain = create("sequential")
    plain.learn(colours)
    adapters = [
        *store.current.adapters.values(),
        ("plain@1", plain.store.current.adapters["g1"][1]),
        None,
    ]
    prompts = [
        [Message(role="user", content=f"Say the letter of the colour.\n\n{w}")] for w in "ab"
    ]
    pairs = [(prompt, adapter) for prompt in prompts for adapter in adapters]
    together = host.generate(*zip(*pairs, strict=True), max_new_tokens=6)
    alone = []
    for prompt, adapter in pairs:
        host.clear()
        alone += host.generate([prompt], [adapter], max_new_tokens=6)
    assert together == alone
    assert len(set(together)) > 2


def test_the_experts_share_the_rank(store, built):
    _, folder = store.current.adapters["g1"]
    downs = [v for name, v in load_file(folder / WEIGHTS).items() if "lora_A" in name]
    assert {len(down) for down in downs} == {12}, "as many parameters as a LoRA of rank 12"
    with pytest.raises(ConfigError, match=r"adapter\.r is 6; .* 4 experts.*such as 8"):
        built("moelora", adapter={"r": 6})
    with pytest.raises(ConfigError, match=r"adapter\.rank_pattern\.q_proj is 3"):
        built("moelora", adapter={"r": 8, "rank_pattern": {"q_proj": 3}})


def test_gated_adapters_are_not_merged_by_hand(store, host):
    with pytest.raises(ConfigError, match="is a mixture of experts"):
        merge_groups(ContinualLearner(store, host=host), "g1", "g2")
    assert store.current.number == 2


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
    with pytest.raises(ConfigError, match=r"adapter\.use_rslora is set; the method stacks"):
        OLoRA().open(host, None, adapter)
