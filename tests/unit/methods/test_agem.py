"""A-GEM: the projection against its closed form, and the gradient a step really takes."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback, TrainingArguments

from lcia.distributed.launch import launch_of
from lcia.learner.trainer import MethodTrainer
from lcia.methods.agem import project
from lcia.store.samples import read_samples


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
