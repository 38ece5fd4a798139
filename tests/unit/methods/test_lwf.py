"""LwF: the distillation loss against its formula, and the teacher against a second model."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcia.errors import ConfigError
from lcia.methods.lwf import LwF, distillation


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
