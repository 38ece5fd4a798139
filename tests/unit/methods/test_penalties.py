"""EWC and L2: the penalty, its gradient, the Fisher information, its weight in a step."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from lcia.distributed.launch import launch_of
from lcia.errors import ConfigError
from lcia.learner.trainer import MethodTrainer
from lcia.methods import Method
from lcia.methods.penalties import LwF, QuadraticPenalty, distillation, empirical_fisher


def leaves(*shapes, seed=0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"p{i}": torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_the_penalty_and_its_gradient_are_the_formula_s(weighted):
    parameters = leaves((3, 2), (4,))
    fisher = {name: torch.rand_like(p).detach() for name, p in parameters.items()}
    penalty = QuadraticPenalty(parameters, strength=3.0, precision=fisher if weighted else None)
    assert penalty().item() == 0
    old = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn_like(p))
    weights = fisher if weighted else {name: torch.ones_like(p) for name, p in old.items()}
    total = sum((weights[n] * (p - old[n]) ** 2).sum() for n, p in parameters.items())
    assert penalty().item() == pytest.approx(1.5 * total.item(), rel=1e-12)
    penalty().backward()
    for name, p in parameters.items():
        torch.testing.assert_close(p.grad, 3 * weights[name] * (p - old[name]).detach())

    def at(*values):
        with torch.no_grad():
            for p, value in zip(parameters.values(), values, strict=True):
                p.copy_(value)
        return penalty().item()

    points = [p.detach().clone() for p in parameters.values()]
    for i, point in enumerate(points):
        for j in range(point.numel()):
            step = torch.zeros_like(point).view(-1)
            step[j] = 1e-5
            moved = [
                [*points[:i], point + sign * step.view_as(point), *points[i + 1 :]]
                for sign in (1, -1)
            ]
            slope = (at(*moved[0]) - at(*moved[1])) / 2e-5
            expected = list(parameters.values())[i].grad.view(-1)[j].item()
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_fisher_information_is_the_mean_of_squared_gradients_of_each_sample(built, colours):
    opened = built("ewc")
    with torch.no_grad():  # B = 0 would leave half of the gradients 0
        for p in opened.context.parameters.values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    samples = colours.train[:5]
    batches = [opened.context.encode([sample]) for sample in samples]
    found = empirical_fisher(opened.model, opened.context.parameters, batches)

    model = opened.model.double().eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in batches:
        logits = model(input_ids=batch["input_ids"]).logits[0]
        answer = batch["labels"][0][batch["labels"][0] >= 0]
        before = logits[-len(answer) - 1 : -1].log_softmax(-1)
        model.zero_grad()
        before[range(len(answer)), answer].sum().backward()
        for name, p in parameters.items():
            expected[name] += p.grad**2 / len(samples)
    model.float()
    assert len(found) == len(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-3, atol=1e-9)
    assert opened.model.training is False  # as it was


def test_the_fisher_information_decays_and_adds_up_over_tasks(create, colours, shades):
    state = "method_state.safetensors"
    runs = {}
    for decay in (0.0, 1.0):
        learner = create({"name": "ewc", "decay": decay, "strength": 0.0})
        learner.run([colours, shades])
        groups = [version.adapters["g1"][1] for version in learner.store.history()]
        runs[decay] = [load_file(folder / state) for folder in groups]
    (first, new), (_, total) = runs[0.0], runs[1.0]
    for name in first:
        torch.testing.assert_close(total[name], first[name] + new[name])


def test_a_strong_penalty_keeps_what_matters_where_it_was(create, colours, shades):
    moved = {}
    for strength in (0.0, 1e5):
        training = {"optim": "sgd", "learning_rate": 1e-5}
        learner = create({"name": "ewc", "strength": strength}, training={"num_train_epochs": 2})
        learner.learn(colours)
        learner.config = learner.config.model_copy(update={"training": training})
        learner.learn(shades)
        folders = [version.adapters["g1"][1] for version in learner.store.history()]
        before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
        fisher = load_file(folders[0] / "method_state.safetensors")
        moved[strength] = sum(
            (fisher[n.replace(".weight", ".default.weight")] * (after[n] - p).square()).sum().item()
            for n, p in before.items()
        )
    assert moved[1e5] < moved[0.0]


def test_a_group_without_its_fisher_information_is_named(built, caplog):
    opened = built("ewc", reused=True)
    opened.method.attach(SimpleNamespace(model=opened.model), opened.context)
    assert "group g1: no F of its earlier tasks is stored" in caplog.text
    assert opened.method.extra_loss(opened.model, {}, None) is None


class Constant(Method):
    """Adds 3 times the sum of all parameters, and twice the model's own loss."""

    def attach(self, trainer, context):
        self._parameters = context.parameters

    def extra_loss(self, model, inputs, outputs):
        logits = outputs.logits[:, :-1].float()
        labels = inputs["labels"][:, 1:]
        own = torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])
        return 3 * sum(p.sum() for p in self._parameters.values()) + 2 * own


class Grads(TrainerCallback):
    def __init__(self, parameters):
        self.parameters = parameters

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen = {name: p.grad.clone() for name, p in self.parameters.items()}


@pytest.mark.parametrize(("batch", "accumulated"), [(8, 1), (4, 2), (1, 8)])
def test_an_added_loss_weighs_the_same_however_a_step_is_cut_into_batches(
    batch, accumulated, built, host, colours, tmp_path
):
    answers = ["r", "green", "a much longer answer", "b", "to", "three", "x", "seven words"]
    samples = [
        replace(sample, answers=(answer,))
        for sample, answer in zip(colours.train, answers, strict=False)
    ]
    grads = {}
    for method in (Method(), Constant()):
        torch.manual_seed(0)
        opened = built("sequential")
        with torch.no_grad():
            for p in opened.context.parameters.values():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        method.attach(None, opened.context)
        catch = Grads(opened.context.parameters)
        MethodTrainer(
            method=method,
            model=opened.model,
            launch=launch_of({}),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulated,
                max_steps=1,
                max_grad_norm=0,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                remove_unused_columns=False,
            ),
            train_dataset=[host.chat.encode_example(sample) for sample in samples],
            data_collator=host.chat.collate,
            callbacks=[catch],
        ).train()
        grads[type(method)] = catch.seen
    for name, plain in grads[Method].items():
        torch.testing.assert_close(grads[Constant][name], 3 * plain + 3, rtol=1e-4, atol=1e-4)


def formula(student, teacher, temperature) -> float:
    """T^2 * mean over tokens of KL(softmax(teacher / T) || softmax(student / T)), in float64."""

    def log_softmax(logits):
        scaled = logits / temperature
        return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 5), temperature=st.floats(0.5, 5.0))
def test_the_distillation_loss_is_the_formula_s(seed, tokens, temperature):
    draw = np.random.default_rng(seed)
    student, teacher = draw.normal(size=(2, tokens, 7))
    found = distillation(
        torch.tensor(student), torch.tensor(teacher), temperature=temperature
    ).item()
    assert found == pytest.approx(formula(student, teacher, temperature), rel=1e-4, abs=1e-6)
    same = torch.tensor(teacher)
    assert distillation(same, same.clone(), temperature=temperature).item() == 0


def test_its_gradient_is_that_of_finite_differences():
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 3, 5))
    logits = torch.tensor(student, requires_grad=True)
    distillation(logits, torch.tensor(teacher), temperature=2.0).backward()
    for cell in np.ndindex(student.shape):
        step = np.zeros_like(student)
        step[cell] = 1e-5
        slope = formula(student + step, teacher, 2.0) - formula(student - step, teacher, 2.0)
        assert logits.grad[cell].item() == pytest.approx(slope / 2e-5, rel=1e-3, abs=1e-6)


def test_the_teacher_is_the_model_before_the_task_and_reads_answers_only(built, shades):
    opened = built("lwf", {"strength": 3.0}, adapter={"lora_dropout": 0.5})
    with torch.no_grad():
        for p in opened.context.parameters.values():
            p.add_(0.1 * torch.randn_like(p))
    teacher = copy.deepcopy(opened.model).eval()
    opened.method.attach(None, opened.context)
    batch = opened.context.encode(shades.train[:3])
    opened.model.eval()
    assert opened.method.extra_loss(opened.model, batch, opened.model(**batch)).item() == 0
    assert opened.model.training, "the student has dropout, the teacher has none"
    with torch.no_grad():
        for p in opened.context.parameters.values():
            p.add_(0.1 * torch.randn_like(p))
    opened.model.eval()
    outputs = opened.model(**batch)
    found = opened.method.extra_loss(opened.model, batch, outputs)
    rows = []
    for sample in shades.train[:3]:  # one by one, so without any padding
        alone = opened.context.encode([sample])
        count = int((alone["labels"] >= 0).sum())
        opened.model.eval()
        both = [
            model(input_ids=alone["input_ids"]).logits[0, -count - 1 : -1].detach().double()
            for model in (opened.model, teacher)
        ]
        rows.append([logits.numpy() for logits in both])
    student, taught = (np.concatenate(side) for side in zip(*rows, strict=True))
    assert found.item() == pytest.approx(3 * formula(student, taught, 2.0), rel=1e-3)
    found.backward()
    assert any(p.grad.abs().sum() > 0 for p in opened.context.parameters.values())


def test_the_first_task_of_a_group_has_no_teacher(built):
    opened = built("lwf", reused=False)
    opened.method.attach(None, opened.context)
    assert opened.method.extra_loss(opened.model, {}, None) is None


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"method\.temperature is 0; expected a number above 0"):
        LwF(temperature=0)
