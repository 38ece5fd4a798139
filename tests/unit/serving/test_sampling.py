"""Tokens are drawn from the distribution that was asked for."""

import math

import pytest
import torch

from lcia.serving.engine import sampling
from lcia.serving.engine.sampling import Sampling


def choose(logits, settings, generators):
    rows = enumerate(zip(sampling.peaks(logits), settings, generators, strict=True))
    return [sampling.choose(logits, row, *of_row) for row, of_row in rows]


def frequencies(logits, setting, draws=4000):
    generator = setting.generator()
    counts = torch.zeros(len(logits))
    for _ in range(draws):
        counts[choose(logits[None], [setting], [generator])[0]] += 1
    return counts / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 0.0, 1.0, -30.0])
    weights = [math.exp(float(x) / temperature) for x in logits]
    expected = torch.tensor([w / sum(weights) for w in weights])
    found = frequencies(logits, Sampling(temperature=temperature, seed=0))
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("candidates", [2, 256])
def test_top_p_keeps_the_smallest_set_that_reaches_it(monkeypatch, candidates):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for top_p, kept in {
        0.05: [1],
        0.4: [1],
        0.41: [1, 3],
        0.75: [1, 2, 3],
        0.99: [0, 1, 2, 3],
    }.items():
        found = frequencies(logits, Sampling(temperature=1, top_p=top_p, seed=1), draws=1500)
        assert found.nonzero().flatten().tolist() == kept
        expected = logits.exp()[kept] / logits.exp()[kept].sum()
        torch.testing.assert_close(found[kept], expected, atol=0.05, rtol=0)


def test_rows_do_not_touch_each_other():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    drawn = Sampling(temperature=1.0, seed=7)
    alone = choose(logits[1:2], [drawn], [drawn.generator()])
    mixed = choose(logits, [Sampling(), drawn, Sampling()], [None, drawn.generator(), None])
    assert mixed == [int(logits[0].argmax()), alone[0], int(logits[2].argmax())]


def test_without_a_seed_answers_differ():
    logits = torch.zeros(1, 10000)
    drawn = {choose(logits, [s], [s.generator()])[0] for s in [Sampling(temperature=1.0)] * 5}
    assert len(drawn) > 1
