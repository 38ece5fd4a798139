"""What DynamicEMA promises around the formula: which steps, which tensors, which copies."""

import logging

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lcia.ema import REASONS, DynamicEMA, Toolkit
from lcia.ema.record import load_state, save_state
from lcia.errors import ConfigError, TrainingError


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def batches(n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator).to(dtype) for _ in range(n)]


def train(model, ema, *, steps=8, set_to_none=True, lr=0.1, pieces=1, clip=None, between=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for step, batch in enumerate(batches(steps, next(model.parameters()).dtype)):
        for piece in batch.chunk(pieces):
            (10 * model(piece).pow(2).mean() / pieces).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if between:
            between(step)
        optimizer.step()
        ema.update()
        optimizer.zero_grad(set_to_none=set_to_none)


def averages(ema):
    return {name: value.clone() for name, value in ema.shadow.items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
def test_renewed_and_reused_gradient_buffers_give_the_same_to_the_bit(rule):
    results = []
    for set_to_none in (True, False):
        model = network()
        ema = DynamicEMA(model.named_parameters(), rule=rule)
        train(model, ema, set_to_none=set_to_none)
        results.append(averages(ema))
    assert same(*results)


def test_renewed_gradients_are_kept_without_a_copy():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    grads = []
    train(model, ema, steps=3, between=lambda _: grads.append(model[0].weight.grad.data_ptr()))
    assert ema.state_dict()["grad_prev"]["0.weight"].data_ptr() == grads[-1]


def test_gradients_inside_a_shared_buffer_are_copied():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    size = sum(p.numel() for p in model.parameters())
    reference, buffer = network(), torch.zeros(size)
    expected = DynamicEMA(reference.named_parameters())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, reference)]
    for batch in batches(6):
        for m, average, optimizer in zip(
            (model, reference), (ema, expected), optimizers, strict=True
        ):
            m(batch).pow(2).mean().backward()
            if m is model:  # as DDP does with gradient_as_bucket_view
                start = 0
                for p in m.parameters():
                    view = buffer[start : start + p.numel()].view_as(p)
                    view.copy_(p.grad)
                    p.grad, start = view, start + p.numel()
            optimizer.step()
            average.update()
            optimizer.zero_grad(set_to_none=True)
    assert same(averages(ema), averages(expected))


def test_a_loop_that_starts_to_overwrite_kept_gradients_is_told():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3)
    with pytest.raises(TrainingError, match="written over"):
        train(model, ema, steps=3, set_to_none=False)


def test_accumulated_gradients_count_as_one_step():
    whole, split = network(torch.float64), network(torch.float64)
    a, b = DynamicEMA(whole.named_parameters()), DynamicEMA(split.named_parameters())
    train(whole, a)
    train(split, b, pieces=3)
    assert a.stats().steps == b.stats().steps == 8
    for name, value in a.shadow.items():
        torch.testing.assert_close(b.shadow[name], value, rtol=1e-9, atol=1e-12)


def test_the_clipped_gradient_is_the_one_that_counts():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3, clip=1e-3)
    norm = sum(g.square().sum() for g in ema.state_dict()["grad_prev"].values()).sqrt()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_scaling_uses_unscaled_gradients_and_leaves_skipped_steps_out(fused):
    def run(scaled):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**4)
        ema = DynamicEMA(model.named_parameters())
        ema.attach(optimizer)
        for step, batch in enumerate(batches(6)):
            if step == 3 and not scaled:
                continue  # the step whose gradients overflow
            loss = model(batch).pow(2).mean()
            scaler.scale(loss).backward()
            if step == 3:
                model[0].weight.grad[0, 0] = torch.inf
            if not fused:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return ema

    scaled, plain = run(True), run(False)
    assert scaled.stats().steps == plain.stats().steps == 5
    assert scaled.stats().counts["not_finite"] == 0
    for name, value in plain.shadow.items():
        torch.testing.assert_close(scaled.shadow[name], value, rtol=1e-5, atol=1e-7)


def test_attach_equals_update_and_can_be_removed():
    by_hand, hooked = network(), network()
    a, b = DynamicEMA(by_hand.named_parameters()), DynamicEMA(hooked.named_parameters())
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1, momentum=0.9)
    handle = b.attach(optimizer)
    train(by_hand, a, steps=5)
    for batch in batches(5):
        (10 * hooked(batch).pow(2).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(averages(a), averages(b))
    handle.remove()
    optimizer.step()
    assert b.stats().steps == 5


def test_an_attached_average_that_sees_no_gradients_is_an_error():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DynamicEMA(model.named_parameters()).attach(optimizer)
    with pytest.raises(TrainingError, match="all 4 gradients are None"):
        optimizer.step()


@pytest.mark.parametrize("rule", ["paper", "release", "curvature", "horizon"])
def test_the_number_of_waits_for_values_does_not_grow_with_the_tensors(rule):
    def waits(tensors):
        settings = {"max_steps": 9} if rule == "horizon" else {}
        named = [(str(i), nn.Parameter(torch.ones(3))) for i in range(tensors)]
        ema = DynamicEMA(named, rule={"name": rule, **settings})
        for step in range(3):
            for _, p in named:
                p.grad = torch.full((3,), 1.0 + step)
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                ema.update()
        return sum(e.count for e in recorded.key_averages() if "_local_scalar_dense" in e.key)

    assert waits(40) == waits(2)


def test_bf16_parameters_have_float32_averages_that_do_not_round_small_moves_away():
    parameter = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    ema = DynamicEMA([("w", parameter)], rule={"name": "fixed", "beta": 0.999})
    parameter.data.fill_(1.0078125)  # the next bf16 value after 1
    for _ in range(100):
        ema.update()
    expected = 1.0078125 - 0.0078125 * 0.999**100
    assert ema.shadow["w"].dtype == torch.float32
    torch.testing.assert_close(ema.shadow["w"], torch.full((8,), expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
def test_bf16_training_equals_float32_arithmetic_on_the_same_values(rule):
    # 70 000 elements: more than one chunk of conversion.
    torch.manual_seed(0)
    low = nn.Parameter((torch.randn(70_000) * 1e-3).bfloat16())
    high = nn.Parameter(low.detach().float())
    a, b = DynamicEMA([("w", low)], rule=rule), DynamicEMA([("w", high)], rule=rule)
    for _ in range(5):
        low.grad = (torch.randn(70_000) * 1e-3).bfloat16()
        low.data -= 0.1 * low.grad
        high.data, high.grad = low.detach().float(), low.grad.float()
        a.update()
        b.update()
    torch.testing.assert_close(a.shadow["w"], b.shadow["w"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_of_a_parameter_in_memory_does_not_matter(dtype):
    torch.manual_seed(0)
    values = torch.randn(6, 5, 3, 3).to(dtype)
    plain = nn.Parameter(values.clone())
    strided = nn.Parameter(values.to(memory_format=torch.channels_last))
    assert not strided.is_contiguous()
    a, b = (DynamicEMA([("w", p)], rule="paper") for p in (plain, strided))
    for _ in range(5):
        grad = torch.randn(6, 5, 3, 3).to(dtype)
        for p, ema in ((plain, a), (strided, b)):
            p.grad = grad.clone(memory_format=torch.preserve_format)
            p.data -= 0.1 * grad
            ema.update()
    torch.testing.assert_close(a.shadow["w"], b.shadow["w"], rtol=1e-6, atol=1e-7)


def test_parameters_without_names_are_told_what_is_expected():
    net = nn.Linear(2, 2)
    for given, found in [(net, "Linear"), (net.parameters(), "Parameter"), (["weight"], "str")]:
        with pytest.raises(ConfigError, match=rf"a {found}; .*model\.named_parameters\(\)"):
            DynamicEMA(given)


def test_frozen_parameters_take_no_part_and_join_when_unfrozen():
    model = network()
    model[0].requires_grad_(False)
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3)
    assert set(ema.shadow) == {"2.weight", "2.bias"}
    model[0].requires_grad_(True)
    train(model, ema, steps=1)
    assert torch.equal(ema.shadow["0.weight"], model[0].weight)
    assert ema.last_step().counts["first_step"] == 2
    resumed = DynamicEMA(model.named_parameters())
    resumed.load_state_dict(ema.state_dict())
    assert same(averages(resumed), averages(ema))
    frozen_again = ema.shadow["2.weight"].clone()
    model[2].requires_grad_(False)
    train(model, ema, steps=2)
    assert torch.equal(ema.shadow["2.weight"], frozen_again)
    assert ema.last_step().counts["no_gradient"] == 2


@pytest.mark.parametrize(("rule", "reason"), [("release", None), ("paper", "first_step")])
def test_a_tensor_that_joined_has_no_step_before_the_last_one(rule, reason):
    model = network()
    model[0].requires_grad_(False)
    ema = DynamicEMA(model.named_parameters(), rule=rule)
    train(model, ema, steps=3)
    model[0].requires_grad_(True)
    train(model, ema, steps=2)  # it joins after its first step: what that moved is not known
    assert ema.last_step().counts["first_step"] == (2 if reason else 0)
    train(model, ema, steps=1)
    assert ema.last_step().counts["first_step"] == 0


@pytest.mark.parametrize("rule", ["paper", "curvature"])
def test_a_state_without_the_step_before_the_last_is_refused(rule):
    model = network()
    ema = DynamicEMA(model.named_parameters(), rule=rule)
    train(model, ema, steps=3)
    state = ema.state_dict()
    del state["step_l1" if rule == "paper" else "theta_before"]
    with pytest.raises(TrainingError, match=rf"the state has no .*'{rule}' needs"):
        DynamicEMA(model.named_parameters(), rule=rule).load_state_dict(state)


def test_tied_weights_are_averaged_once():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    ema = DynamicEMA(model.named_parameters(remove_duplicate=False))
    train_batch = torch.randn(4, 3)
    model(train_batch).sum().backward()
    ema.update()
    assert set(ema.shadow) == {"0.weight", "0.bias", "1.bias"}
    assert sum(ema.stats().counts.values()) == 3


def test_a_tensor_without_gradient_keeps_its_average_and_is_counted():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3)
    before = averages(ema)

    def drop(step):
        model[0].weight.grad = None

    train(model, ema, steps=1, between=drop)
    assert torch.equal(ema.shadow["0.weight"], before["0.weight"])
    assert not torch.equal(ema.shadow["2.weight"], before["2.weight"])
    assert ema.last_step().shares["no_gradient"] == 0.25


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_leaves_its_average_and_is_told(value, caplog):
    model = network()
    ema = DynamicEMA(model.named_parameters(), rule="paper")
    train(model, ema, steps=3)
    before = averages(ema)
    optimizer = torch.optim.SGD([model[2].bias], lr=0.1)
    model(batches(1)[0]).pow(2).mean().backward()
    model[0].weight.grad[1, 2] = value
    optimizer.step()
    with caplog.at_level(logging.WARNING):
        ema.update()
    assert torch.equal(ema.shadow["0.weight"], before["0.weight"])
    assert ema.last_step().counts["not_finite"] == 1
    assert "1 tensor updates up to step 4" in caplog.text
    model.zero_grad()
    train(model, ema, steps=1)  # the gradient change is not finite, the gradient is
    assert ema.last_step().counts["not_finite"] == 1
    assert not torch.equal(ema.shadow["0.weight"], before["0.weight"])
    train(model, ema, steps=1)
    assert ema.last_step().counts["not_finite"] == 0
    assert all(value.isfinite().all() for value in ema.shadow.values())


def test_every_reason_has_its_case():
    def one(reason):
        p = nn.Parameter(torch.ones(3))
        ema = DynamicEMA([("w", p)], rule="release")
        p.grad = torch.ones(3)
        p.data = torch.full((3,), 2.0)
        ema.update()
        if reason != "first_step":
            p.data = ema.shadow["w"].clone() if reason == "no_drift" else torch.full((3,), 9.0)
            change = {"no_curvature": 0.0, "not_finite": torch.nan, "out_of_range": 1e-6}
            p.grad = torch.ones(3) + change.get(reason, 10.0)
            ema.update()
        return ema.last_step().counts

    for reason in (*REASONS[:5], "closed_form"):
        counts = one(reason)
        assert counts.pop(reason) == 1, reason
        assert not any(counts.values())


def test_recent_figures_cover_the_updates_since_they_were_asked_for():
    model = network()
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3)
    first = ema.recent_stats()
    train(model, ema, steps=2)
    second = ema.recent_stats()
    assert (first.steps, second.steps) == (3, 2)
    assert first + second == ema.stats()
    assert ema.recent_stats().steps == 0


def test_missing_gradients_are_an_error_for_every_rule_that_reads_them():
    model = network()
    ema = DynamicEMA(model.named_parameters(), rule="paper")
    with pytest.raises(TrainingError, match=r"all 4 gradients are None.*'paper'.*zero_grad"):
        ema.update()


def test_swapped_gives_the_average_and_takes_it_back_even_after_an_error():
    model = network(torch.bfloat16)
    ema = DynamicEMA(model.named_parameters())
    train(model, ema, steps=3)
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), ema.swapped():
        for name, p in model.named_parameters():
            assert torch.equal(p, ema.shadow[name].bfloat16())
        with pytest.raises(TrainingError, match="inside swapped"):
            ema.update()
        raise ZeroDivisionError
    assert same(theta, {n: p.detach() for n, p in model.named_parameters()})


@pytest.mark.parametrize("rule", ["paper", "release", "fixed", "curvature"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_saved_and_loaded_goes_on_to_the_bit(rule, set_to_none):
    model, copy = network(), network()
    ema = DynamicEMA(model.named_parameters(), rule=rule)
    train(model, ema, steps=4, set_to_none=set_to_none)
    copy.load_state_dict(model.state_dict())
    resumed = DynamicEMA(copy.named_parameters(), rule=rule)
    resumed.load_state_dict(ema.state_dict())
    model.zero_grad(set_to_none=set_to_none)
    for m, e in ((model, ema), (copy, resumed)):
        train(m, e, steps=4, set_to_none=set_to_none)
    assert same(averages(ema), averages(resumed))
    assert ema.stats() == resumed.stats()


def test_values_that_do_not_fit_are_named():
    model = network()
    with pytest.raises(TrainingError, match=r"'0.bias' have shape \(3,\).*shape \(7,\)"):
        DynamicEMA(model.named_parameters(), initial={"0.bias": torch.zeros(3)})
    ema = DynamicEMA(model.named_parameters())
    state = ema.state_dict()
    del state["shadow"]["2.bias"]
    with pytest.raises(TrainingError, match=r"no '2\.bias'"):
        ema.load_state_dict(state)
    with pytest.raises(TrainingError, match="nothing to average"):
        DynamicEMA(network().requires_grad_(False).named_parameters())


def test_order_of_the_parameters_does_not_matter():
    results = []
    for reverse in (False, True):
        model = network()
        named = list(model.named_parameters())
        ema = DynamicEMA(reversed(named) if reverse else named)
        train(model, ema)
        results.append(dict(sorted(averages(ema).items())))
    assert same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["paper", "release"])
def test_compiled_kernels_equal_the_reference(rule, dtype):
    torch.manual_seed(0)
    shapes = [(8, 33), (5,), (64, 300), (1, 1)]
    parameters = [(str(i), nn.Parameter(torch.randn(s).to(dtype))) for i, s in enumerate(shapes)]
    eager = DynamicEMA(parameters, rule=rule, fused=False)
    fused = DynamicEMA(parameters, rule=rule, fused=True)
    for step in range(6):
        for _, p in parameters:
            p.grad = torch.randn_like(p)
            p.data = p.data - 0.1 * p.grad
        if step == 4:
            parameters[0][1].grad[0, 0] = torch.nan
            parameters[1][1].data[0] = torch.inf
        eager.update()
        fused.update()
    assert eager.stats().counts == fused.stats().counts
    assert eager.stats().counts["not_finite"] > 0
    for name, values in eager.shadow.items():
        torch.testing.assert_close(fused.shadow[name], values, rtol=1e-5, atol=1e-6)


def test_a_state_of_a_rule_under_its_earlier_name_is_read(tmp_path):
    class Next(Toolkit):
        pass

    parameters = {"a": nn.Parameter(torch.ones(3))}
    state = DynamicEMA(parameters.items(), rule=Toolkit()).state_dict()
    save_state(tmp_path / "state.safetensors", state, rule=Next())
    found = load_state(tmp_path / "state.safetensors", rule=Toolkit())
    assert torch.equal(found["shadow"]["a"], torch.ones(3))
    with pytest.raises(TrainingError, match="written under rule"):
        load_state(tmp_path / "state.safetensors", rule=Toolkit(scale=0.5))
