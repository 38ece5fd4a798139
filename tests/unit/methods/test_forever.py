"""FOREVER-like replay: its clock against a plain simulation, its loss against the formula."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from lcia.methods.forever import DAYS, Clock, due
from lcia.store.samples import read_samples


@pytest.mark.parametrize("days", [0, 0.5, 1, 1.9, 2, 4, 6.9, 7, 15, 29, 30, 59.9, 60, 90, 1e6])
def test_replays_come_due_on_the_days_of_the_curve_and_every_thirty_after(days):
    calendar = [*DAYS, *range(60, 2_000_000, 30)]
    assert due(days) == sum(day <= days for day in calendar)
    assert due(float("inf")) == due(float("nan")) == 0


def context(count=5, seed=3):
    parameters = {"a": torch.zeros(2), "b": torch.zeros(1, 2)}
    return SimpleNamespace(parameters=parameters, remembered=list(range(count)), seed=seed)


def at(step, folder=None):
    args = SimpleNamespace(output_dir=str(folder))
    return args, SimpleNamespace(global_step=step, is_world_process_zero=True), None


def moves(count):
    """Lengths of the steps: a learning rate that falls."""
    return [0.5 * 0.97**i for i in range(count)]


def walk(clock, seen, lengths):
    """Move the parameters by such steps; return what each step replays."""
    replayed = []
    for length in lengths:
        replayed.append(clock.batch)
        for parameter in seen.parameters.values():
            parameter += length / 2  # four numbers: a step of ``length``
        clock.on_optimizer_step(*at(0))
    return replayed


def test_what_is_remembered_is_replayed_once_whenever_the_drift_says_so():
    seen = context()
    clock = Clock(seen, day=3, batch=2)
    clock.on_train_begin(*at(0))
    lengths = moves(80)
    found = walk(clock, seen, lengths)
    day, drift, replays, pending, expected = sum(lengths[:3]), 0.0, 0, [], []
    for step, length in enumerate(lengths, start=1):
        expected.append(pending[:2])
        pending, drift = pending[2:], drift + length
        count = sum(d <= drift / day + 1e-9 for d in DAYS) if step >= 3 else 0
        if count > replays:
            replays, pending = count, list(range(5))
            random.Random(f"3/{replays}").shuffle(pending)
    assert found == expected
    assert clock.drift == pytest.approx(drift, rel=1e-5)
    assert clock.replays == replays == 4
    assert Counter(place for batch in found for place in batch) == dict.fromkeys(range(5), 4)


def test_a_resumed_clock_goes_on_where_it_was(tmp_path):
    straight, cut = context(), context()
    whole, first = (Clock(seen, day=3, batch=2) for seen in (straight, cut))
    for clock in (whole, first):
        clock.on_train_begin(*at(0))
    expected = walk(whole, straight, moves(40))
    found = walk(first, cut, moves(40)[:13])
    (tmp_path / "checkpoint-13").mkdir()
    first.on_save(*at(13, tmp_path))
    again = Clock(cut, day=3, batch=2)
    again.on_train_begin(*at(13, tmp_path))
    assert found + walk(again, cut, moves(40)[13:]) == expected
    assert (again.drift, again.replays) == (whole.drift, whole.replays)


def test_a_replay_adds_the_loss_of_remembered_samples(built, shades):
    opened = built("forever", {"strength": 0.5, "batch_size": 3}, remembered=shades.train[:7])
    with torch.no_grad():
        for p in opened.context.parameters.values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    method, model = opened.method, opened.model
    method.attach(SimpleNamespace(add_callback=lambda callback: None), opened.context)
    assert method.extra_loss(model, {}, None) is None, "no replay is due yet"
    method._clock._pending = [6, 2, 4, 1]
    loss = method.extra_loss(model, {}, None)
    grads = torch.autograd.grad(loss, list(opened.context.parameters.values()))

    model.double()
    total, tokens = 0.0, 0
    for place in (6, 2, 4):
        batch = opened.context.encode([shades.train[place]])
        logits = model(input_ids=batch["input_ids"]).logits[0]
        answer = batch["labels"][0][batch["labels"][0] >= 0]
        before = logits[-len(answer) - 1 : -1].log_softmax(-1)
        total = total - before[range(len(answer)), answer].sum()
        tokens += len(answer)
    expected = 0.5 * total / tokens
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for found, exact in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-6)
    model.float()


def test_the_second_task_replays_the_first_and_both_are_remembered(create, colours, shades):
    learner = create({"name": "forever", "per_task": 3, "day": 2})
    learner.run([colours, shades])
    kept = read_samples(learner.store.current.adapters["g1"][1] / "memory.jsonl")
    assert [sum(sample in task.train for sample in kept) for task in (colours, shades)] == [3, 3]
    plain = create({"name": "forever", "per_task": 3, "day": 2, "strength": 0})
    plain.run([colours, shades])
    losses = [
        [e["loss"] for e in one.store.current.journal() if e["event"] == "step"]
        for one in (learner, plain)
    ]
    assert losses[0][:2] == losses[1][:2], "nothing is replayed on the first day"
    assert losses[0] != losses[1]
