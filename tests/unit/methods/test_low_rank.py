"""SLAO and InfLoRA: their algebra against numpy, and what they promise of stored adapters."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lcia.data import Message
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, merge_groups
from lcia.methods.inflora import COMPLEMENT, grown, outside, restored, stored
from lcia.methods.slao import cut
from lcia.methods.stacking import OLoRA
from lcia.models.lora import EXPERT_ROUTERS, load_expert_routers

WEIGHTS, CARRIED = "adapter_model.safetensors", "method_state.safetensors"


def history(learner, tasks):
    """Learn tasks in one adapter; return after each its factors and what was carried on."""
    learner.run(tasks)
    folders = [version.adapters["g1"][1] for version in learner.store.history()]
    weights = [load_file(folder / WEIGHTS) for folder in folders]
    return folders, weights, [load_file(folder / CARRIED) for folder in folders]


class Calls:
    def __init__(self, model):
        self.model = model

    def add_callback(self, callback):
        self.callback = callback


# SLAO


@pytest.mark.parametrize(("outputs", "inner", "inputs", "rank"), [(9, 6, 7, 3), (3, 8, 4, 5)])
def test_the_cut_is_the_nearest_matrix_of_its_rank(outputs, inner, inputs, rank):
    draw = torch.Generator().manual_seed(outputs)
    up = torch.randn(outputs, inner, generator=draw, dtype=torch.float64)
    down = torch.randn(inner, inputs, generator=draw, dtype=torch.float64)
    small_up, small_down = cut(up, down, rank=rank)
    assert (small_up.shape, small_down.shape) == ((outputs, rank), (rank, inputs))
    u, values, v = np.linalg.svd((up @ down).numpy())
    size = min(rank, len(values))
    nearest = (u[:, :size] * values[:size]) @ v[:size]
    np.testing.assert_allclose((small_up @ small_down).numpy(), nearest, atol=1e-12)
    # half of every singular value in each factor
    np.testing.assert_allclose((small_up.T @ small_up).diagonal()[:size], values[:size])
    np.testing.assert_allclose((small_down @ small_down.T).diagonal()[:size], values[:size])


@pytest.fixture(scope="module")
def merged(create, colours, shades, numbers):
    learner = create("slao", training={"num_train_epochs": 3})
    return history(learner, [colours, shades, numbers])


def test_each_task_moves_the_stored_change_of_weights_by_one_over_the_root_of_its_number(merged):
    _, weights, carried = merged
    assert [int(state["tasks"]) for state in carried] == [1, 2, 3]
    for name in weights[0]:
        if ".lora_A." not in name:
            continue
        other = name.replace("lora_A", "lora_B")
        trained_as = [n.replace(".weight", ".default.weight") for n in (name, other)]
        total = (weights[0][other].double() @ weights[0][name].double()).numpy()
        for t in (2, 3):
            down, up = (carried[t - 1][n].double().numpy() for n in trained_as)
            total = total + (up @ down - total) / np.sqrt(t)
            u, values, v = np.linalg.svd(total)
            total = (u[:, :4] * values[:4]) @ v[:4]
            found = (weights[t - 1][other].double() @ weights[t - 1][name].double()).numpy()
            np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-6)
            assert np.abs(found - up @ down).max() > 1e-4, "not simply the last task's"


def test_the_first_task_is_stored_as_it_was_trained(merged):
    _, weights, carried = merged
    for name, value in weights[0].items():
        assert torch.equal(value, carried[0][name.replace(".weight", ".default.weight")])


def test_a_task_starts_from_the_last_one_s_factors_with_orthonormal_rows_in_a(merged, built):
    folders, _, carried = merged
    opened = built("slao", start=folders[1], carried=carried[1])
    opened.method.attach(Calls(opened.model), opened.context)
    for name, parameter in opened.context.parameters.items():
        last, now = carried[1][name].double(), parameter.detach().double()
        if ".lora_B." in name:
            assert torch.equal(now, last)
            continue
        torch.testing.assert_close(now @ now.T, torch.eye(4).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(last @ now.T @ now, last, rtol=1e-5, atol=1e-6)
        # Gram and Schmidt: the first row's direction stays, every row's own part is positive
        torch.testing.assert_close(now[0], last[0] / last[0].norm(), rtol=1e-5, atol=1e-6)
        assert ((last * now).sum(1) > 0).all()


def test_an_adapter_of_another_method_counts_as_one_task(merged, built, caplog):
    folders, _, _ = merged
    opened = built("slao", start=folders[0])
    opened.method.attach(Calls(opened.model), opened.context)
    assert "group g1: what its last task was fine-tuned to is not stored" in caplog.text
    assert int(opened.method.finish(opened.context)["tasks"]) == 2


# InfLoRA


def orthonormal(rows, columns, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


@pytest.mark.parametrize("size", [0, 3, 7])
def test_directions_outside_a_subspace_are_the_leading_singular_vectors_of_what_is_left(size):
    basis = orthonormal(10, size, 1)
    inputs = np.random.default_rng(2).normal(size=(10, 40)) * np.arange(1, 11)[:, None]
    left = inputs - basis @ (basis.T @ inputs)
    u, _, _ = np.linalg.svd(left)
    second = torch.from_numpy(inputs @ inputs.T)
    found = outside(second, torch.from_numpy(basis), count=4).numpy()
    count = min(4, 10 - size)
    assert found.shape == (10, count)
    np.testing.assert_allclose(np.abs(np.sum(found * u[:, :count], axis=0)), 1, atol=1e-8)
    np.testing.assert_allclose(basis.T @ found, 0, atol=1e-10)
    np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-10)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("size", [0, 3])
def test_a_subspace_grows_by_as_few_directions_as_hold_the_share(keep, size):
    basis = orthonormal(8, size, 3)
    inputs = np.random.default_rng(4).normal(size=(8, 30)) * np.arange(1, 9)[:, None]
    found = grown(torch.from_numpy(inputs @ inputs.T), torch.from_numpy(basis), keep=keep).numpy()
    np.testing.assert_allclose(found[:, :size], basis)
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-9)

    def share(columns):
        return np.sum((columns.T @ inputs) ** 2) / np.sum(inputs**2)

    left = inputs - basis @ (basis.T @ inputs)
    values = np.linalg.svd(left, compute_uv=False) ** 2 / np.sum(inputs**2)
    held = share(basis) + np.concatenate([[0.0], np.cumsum(values)])
    fewest = next(i for i, value in enumerate(held) if value >= keep - 1e-9)
    assert found.shape[1] == size + fewest
    assert share(found) >= keep - 1e-9


@pytest.mark.parametrize("size", [0, 2, 5, 6, 9, 10])
def test_a_subspace_is_kept_as_the_smaller_of_its_basis_and_its_complement_s(size):
    basis = torch.from_numpy(orthonormal(10, size, 5))
    kept = stored({"layer": basis})
    (name,) = kept
    assert (name.startswith(COMPLEMENT), name.removeprefix(COMPLEMENT)) == (size > 5, "layer")
    assert kept[name].shape[1] <= 5
    back = restored(kept, torch.eye(10).double(), layer="layer")
    torch.testing.assert_close(back @ back.T, basis @ basis.T, rtol=0, atol=1e-6)
    assert restored({}, torch.eye(10), layer="layer").shape == (10, 0)


@pytest.fixture(scope="module")
def kept_apart(create, colours, numbers):
    settings = {"name": "inflora", "keep": 0.9, "samples": 16}
    learner = create(settings, training={"weight_decay": 0.5, "num_train_epochs": 2})
    return history(learner, [colours, numbers])


def test_a_new_lora_does_not_act_on_the_subspace_of_earlier_inputs(kept_apart):
    folders, (first, both), (state, _) = kept_apart
    assert [LoraConfig.from_pretrained(folder).r for folder in folders] == [4, 8]
    trained = 0.0
    for name, old in first.items():
        dim = 0 if ".lora_A." in name else 1
        kept, new = both[name].split(4, dim=dim)
        assert torch.equal(kept, old), "the earlier LoRA stays to the bit"
        if dim:
            trained += new.abs().sum().item()
            continue
        layer = name.replace(".weight", ".default")
        if layer in state:
            protected = state[layer].numpy()
        else:
            free = state[COMPLEMENT + layer].numpy()
            protected = np.eye(len(free)) - free @ free.T
        assert np.abs(new.numpy() @ protected).max() < 1e-5
        np.testing.assert_allclose(new @ new.T, np.eye(4) / 3, atol=1e-5)
    assert trained > 0


def test_the_inputs_of_an_earlier_task_keep_their_share_out_of_reach(
    kept_apart, tiny_model, built, colours
):
    _, (_, both), _ = kept_apart
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    rows = []
    layer = model.model.layers[0].self_attn.q_proj  # no adapted layer lies before it
    layer.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0][0]))
    opened = built("sequential")
    with torch.no_grad():
        for sample in colours.train:
            model(input_ids=opened.context.encode([sample])["input_ids"])
    inputs = torch.cat(rows).T
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    new = both[name][4:].double()
    reached = (new @ inputs).square().sum() / inputs.square().sum()
    assert reached <= (1 - 0.9) / 3 + 1e-6
    free = torch.randn(4, len(inputs), generator=torch.Generator().manual_seed(0)).double()
    free = torch.linalg.qr(free.T)[0].T / 3**0.5
    assert reached < (free @ inputs).square().sum() / inputs.square().sum()


def test_a_group_without_its_subspace_is_named_and_a_share_above_one_refused(built, caplog):
    opened = built("inflora", {"samples": 2})
    opened.method.attach(Calls(opened.model), opened.context)
    assert "group g1: no subspace of its earlier tasks is stored" in caplog.text
    with pytest.raises(ConfigError, match=r"method\.keep is 1\.5; expected a share"):
        type(opened.method)(keep=1.5)


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
