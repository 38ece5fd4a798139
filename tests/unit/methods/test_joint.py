"""Methods that train on samples of earlier tasks: all at once, replayed, or as a constraint."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from lcia.distributed.launch import launch_of
from lcia.errors import StoreError
from lcia.learner import ContinualLearner, Store, merge_groups
from lcia.learner.trainer import MethodTrainer
from lcia.methods.forever import DAYS, Clock, due
from lcia.methods.replay import project
from lcia.store.samples import read_samples

METRICS_OF_THE_LAST_ROW = {"average_accuracy"}


def remembered_by(version):
    return read_samples(version.adapters["g1"][1] / "memory.jsonl")


def steps(version) -> int:
    return sum(event["event"] == "step" for event in version.journal())


def test_zero_shot_answers_as_the_base_model_does_to_the_bit(create, colours, shades, tiny_model):
    learner = create("zero_shot")
    learner.run([colours, shades])
    current = learner.store.current
    assert {p.adapter for p in current.predictions()} == {None}, "asked once, as the base model"
    assert [steps(version) for version in learner.store.history()] == [0, 0]
    rows = current.matrix().rows
    assert rows[0] == rows[2]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(4, 24).reshape(2, 10)
    expected = base(ids).logits
    assert torch.equal(
        PeftModel.from_pretrained(base, current.adapters["g1"][1])(ids).logits, expected
    )


def test_single_gives_each_task_a_group_and_its_samples_the_right_one(create, colours, shades):
    learner = create("single")
    learner.run([colours, shades])
    groups = {"colours": "g1", "shades": "g2"}
    predictions = learner.store.current.predictions()
    assert all(p.group == groups[p.task] and p.reason == "task_given" for p in predictions)
    assert learner.store.current.matrix()[1, 2] == learner.store.current.matrix()[0, 2], (
        "before it is learned the base model answers"
    )


def test_the_task_can_be_given_to_any_assistant(create, colours, shades):
    learner = create("sequential", grouping="per_task")
    learner.run([colours, shades])
    given = learner.evaluate(task_given=True)
    assert [p.group for p in given] == 4 * ["g1"] + 4 * ["g2"]
    routed = learner.evaluate()
    assert routed == learner.store.current.predictions()
    assert {p.group for p in routed} == {"g1"}, "of two groups with one instruction, the first"


@pytest.fixture(scope="module")
def multitask(create, colours, shades, numbers) -> Store:
    learner = create("multitask", training={"num_train_epochs": 2})
    learner.run([colours, shades, numbers])
    return learner.store


def test_multitask_trains_once_on_the_union_of_all_tasks(multitask, colours, shades, numbers):
    union = [*colours.train, *shades.train, *numbers.train]
    assert list(remembered_by(multitask.current)) == union
    assert [steps(version) for version in multitask.history()] == [0, 0, 2 * len(union) // 4]
    first, _, last = (
        load_file(v.adapters["g1"][1] / "adapter_model.safetensors") for v in multitask.history()
    )
    assert not any(values.any() for name, values in first.items() if "lora_B" in name)
    assert any(values.any() for name, values in last.items() if "lora_B" in name)


def test_what_multitask_did_not_measure_is_missing_and_never_zero(multitask):
    matrix, metrics = multitask.current.matrix(), multitask.current.manifest["metrics"]
    assert matrix.rows[:3] == 3 * ((None, None, None),)
    assert None not in matrix.rows[3]
    known = {name for name, value in metrics.items() if value is not None}
    assert known & set(list(metrics)[:6]) == METRICS_OF_THE_LAST_ROW


def test_multitask_taught_one_by_one_trains_on_everything_so_far(create, colours, shades):
    learner = create("multitask")
    for task in (colours, shades):
        learner.learn(task)
    versions = learner.store.history()
    assert [steps(version) for version in versions] == [16 // 4, 32 // 4]
    assert versions[1].matrix()[1, 1] is not None
    straight = create("multitask")
    straight.run([colours, shades])
    found, expected = (
        (s.current.adapters["g1"][1] / "adapter_model.safetensors").read_bytes()
        for s in (learner.store, straight.store)
    )
    assert found == expected, "the earlier adapter leaves no trace in the last one"


class Killed(BaseException):
    """Stands for the process dying."""


def test_a_task_gathered_by_halves_can_still_be_trained(create, colours, shades, monkeypatch):
    learner = create("multitask")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("lcia.learner.learning.commit", lambda *a, **k: (_ for _ in ()).throw(Killed))
        learner.run([colours, shades])
    again = ContinualLearner(Store.open(learner.store.root), host=learner.host)
    with pytest.raises(StoreError, match="unfinished"):
        again.learn(shades)
    again.learn(colours)
    assert steps(again.store.current) == 4
    assert again.store.current.matrix()[1, 1] is not None


def test_a_stream_that_goes_on_gathers_only_what_is_new(create, colours, shades, numbers):
    learner = create("multitask")
    learner.run([colours, shades])
    learner.run([colours, shades, numbers, replace(numbers, name="twice")])
    assert [steps(version) for version in learner.store.history()] == [0, 8, 0, 16]


@pytest.mark.parametrize("name", ["replay", "agem"])
def test_a_quota_is_drawn_by_seed_and_added_to_what_is_remembered(name, built, colours, shades):
    def remembered(seed, per_task=5):
        earlier = shades.train[:3]
        opened = built(name, {"per_task": per_task}, remembered=earlier, seed=seed)
        kept = tuple(opened.method.remember(opened.context))
        assert kept[:3] == earlier
        assert set(kept[3:]) <= set(colours.train)
        return kept[3:]

    assert len(set(remembered(0))) == 5
    assert remembered(0) == remembered(0) != remembered(1)
    assert set(remembered(0, per_task=100)) == set(colours.train)


def test_replay_trains_on_the_new_samples_and_the_memory(create, colours, shades):
    learner = create({"name": "replay", "per_task": 8})
    learner.run([colours, shades])
    assert [steps(version) for version in learner.store.history()] == [16 // 4, (16 + 8) // 4]


def test_a_memory_stays_within_its_group(create, colours, shades, numbers):
    learner = create({"name": "replay", "per_task": 100}, grouping="on")
    learner.run([colours, numbers, shades])
    kept = {
        group: read_samples(folder / "memory.jsonl")
        for group, (_, folder) in learner.store.current.adapters.items()
    }
    expected = {"g1": {*colours.train, *shades.train}, "g2": set(numbers.train)}
    assert {group: set(samples) for group, samples in kept.items()} == expected
    merged = merge_groups(learner, "g1", "g2")
    assert set(remembered_by(merged)) == expected["g1"] | expected["g2"]


@given(seed=st.integers(0, 10_000), size=st.integers(1, 30), scale=st.floats(1e-3, 1e3))
def test_the_projection_is_the_nearest_vector_that_does_not_point_against(seed, size, scale):
    draw = torch.Generator().manual_seed(seed)
    g, ref = torch.randn(2, size, generator=draw, dtype=torch.float64)
    g = g * scale
    found = project(g, ref)
    closed = g - min(float(g @ ref), 0.0) / float(ref @ ref) * ref
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-12 * scale)
    assert found @ ref >= -1e-9 * scale
    assert found.norm() <= g.norm() * (1 + 1e-12)
    if g @ ref >= 0:
        assert torch.equal(found, g)
    for _ in range(5):  # no other allowed vector is nearer
        other = found + 0.1 * scale * torch.randn(size, generator=draw, dtype=torch.float64)
        if other @ ref >= 0:
            assert (other - g).norm() >= (found - g).norm() - 1e-9 * scale


def test_a_memory_without_a_gradient_leaves_the_step_alone():
    g = torch.randn(4)
    assert torch.equal(project(g, torch.zeros(4)), g)


class Grads(TrainerCallback):
    def __init__(self, parameters):
        self.parameters = parameters
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(torch.cat([p.grad.reshape(-1) for p in self.parameters.values()]).double())


def test_a_step_takes_the_gradient_projected_on_that_of_the_memory(
    built, host, colours, shades, tmp_path
):
    opened = built("agem", {"batch_size": 3}, remembered=shades.train[:8])
    with torch.no_grad():
        for p in opened.context.parameters.values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        per_device_train_batch_size=2,
    )
    before, after = Grads(opened.context.parameters), Grads(opened.context.parameters)
    references = []

    class Reference(TrainerCallback):
        """What a model of its own, in float64, says of the samples of this step."""

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            drawn = random.Random(f"0/{state.global_step}").sample(shades.train[:8], 3)
            kept = {n: p.grad.clone() for n, p in opened.context.parameters.items()}
            opened.model.eval()
            total, tokens = 0.0, 0
            for sample in drawn:
                alone = opened.context.encode([sample])
                count = int((alone["labels"] >= 0).sum())
                total = total + opened.model(**alone).loss * count
                tokens += count
            opened.model.train()
            grads = torch.autograd.grad(total / tokens, list(opened.context.parameters.values()))
            references.append(torch.cat([g.reshape(-1) for g in grads]).double())
            assert all(torch.equal(kept[n], p.grad) for n, p in opened.context.parameters.items())

    trainer = MethodTrainer(
        method=opened.method,
        model=opened.model,
        launch=launch_of({}),
        args=arguments,
        train_dataset=[host.chat.encode_example(sample) for sample in colours.train],
        data_collator=host.chat.collate,
        callbacks=[Reference(), before],
    )
    opened.method.attach(trainer, opened.context)
    trainer.add_callback(after)
    trainer.train()
    turned = [float(g @ ref) < 0 for g, ref in zip(before.seen, references, strict=True)]
    assert any(turned) and not all(turned)
    for g, used, ref in zip(before.seen, after.seen, references, strict=True):
        closed = g - min(float(g @ ref), 0.0) / float(ref @ ref) * ref
        torch.testing.assert_close(used, closed, rtol=1e-3, atol=1e-6)
        assert used @ ref >= -1e-6 * used.norm() * ref.norm()


def test_the_memory_holds_a_quota_of_every_task(create, colours, shades, numbers):
    learner = create({"name": "agem", "per_task": 3})
    tasks = [colours, shades, numbers]
    learner.run(tasks)
    kept = read_samples(learner.store.current.adapters["g1"][1] / "memory.jsonl")
    assert [sum(sample in task.train for sample in kept) for task in tasks] == [3, 3, 3]


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
