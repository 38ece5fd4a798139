"""The gate: its tests, its checks, and what learning makes of its verdict."""

import itertools
import json

import numpy as np
import pytest

from conftest import make_task
from lcia.config import AssistantConfig, GateConfig
from lcia.errors import GateError
from lcia.evaluation.generate import Prediction
from lcia.gate.checks import CHECKS, Evidence
from lcia.gate.general import PASSES, is_json, refuses
from lcia.gate.paired import drop_of, drops_of, fisher, mcnemar
from lcia.learner import ContinualLearner, Store
from lcia.learner import gate as gatekeeping
from lcia.store.transaction import accept, refused

TRAINING = {"max_steps": 2, "learning_rate": 1e-3, "save_steps": 1}


class Killed(BaseException):
    """Stands for the process dying: nothing in lcia catches it."""


def test_mcnemar_is_the_exact_tail_of_fair_coins():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == 1 / 32
    assert mcnemar(8, 1) == 10 / 512
    assert mcnemar(1, 8) == 511 / 512
    assert mcnemar(3000, 0) == pytest.approx(0)


def test_fisher_counts_every_way_to_draw_as_many_hits():
    assert fisher(4, 4, 0, 4) == 1 / 70
    marked = [True] * 5 + [False] * 7
    draws = list(itertools.combinations(marked, 4))
    assert fisher(3, 4, 2, 8) == sum(sum(d) >= 3 for d in draws) / len(draws)
    assert fisher(0, 20, 0, 180) == 1


@pytest.mark.parametrize("graded", [False, True], ids=["right or wrong", "graded"])
def test_candidates_that_are_no_worse_are_refused_no_more_often_than_alpha(graded):
    dice = np.random.default_rng(0)
    refused_ones = 0
    for i in range(400):
        pairs = {}
        for task in range(3):
            scores = dice.random((2, 40)) if graded else dice.integers(0, 2, (2, 40))
            pairs[f"{i}-{task}"] = scores[0].tolist(), scores[1].tolist()
        refused_ones += any(drop.is_real for drop in drops_of(pairs, alpha=0.05).values())
    assert refused_ones <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert refused_ones or not graded


@pytest.mark.parametrize("graded", [False, True], ids=["right or wrong", "graded"])
def test_a_drop_is_real_exactly_when_it_exceeds_its_noise_floor(graded):
    dice = np.random.default_rng(1)
    seen = set()
    for i in range(60):
        before = dice.random(30) if graded else np.ones(30)
        after = before - 0.05 * (i % 4) if graded else (dice.random(30) > 0.05 * (i % 6))
        drop = drop_of(before, after + graded * dice.normal(0, 0.1, 30), alpha=0.05, name=str(i))
        assert drop.is_real == (drop.size > drop.floor + 1e-12)
        seen.add(drop.is_real)
    assert seen == {True, False}


def test_where_samples_are_too_few_to_test_one_answer_may_be_lost():
    assert not drop_of([1, 1, 1, 1], [1, 1, 1, 0], alpha=0.05, name="t").is_real
    lost = drop_of([1, 1, 1, 1], [1, 1, 0, 0], alpha=0.05, name="t")
    assert lost.is_real
    assert lost.p is None
    assert not drop_of([1, 1, 0, 0], [0, 0, 1, 1], alpha=0.05, name="t").is_real


def test_many_small_drops_are_seen_together():
    one = [1.0] * 20, [1.0] * 18 + [0.0] * 2
    evidence = Evidence(
        task="new",
        scores={},
        before=[p for t in "abcde" for p in answers(t, one[0])],
        after=[p for t in "abcde" for p in answers(t, one[1])],
    )
    found = {f.name: f.passed for f in CHECKS["earlier_tasks"](evidence, GateConfig())}
    assert [found[t] for t in "abcde"] == [True] * 5
    assert not found["all earlier tasks together"]


def answers(task, scores, *, group="g1"):
    return [
        Prediction(
            task=task,
            sample=str(i),
            prompt="p",
            answers=("a",),
            prediction="a",
            score=float(score),
            group=group,
            adapter=f"{group}@0001",
            similarity=1.0,
            reason="reached",
        )
        for i, score in enumerate(scores)
    ]


def verdict(check, **evidence):
    """Whether a check lets evidence pass; None where it finds nothing."""
    given = {"task": "new", "scores": {}, **evidence}
    found = list(CHECKS[check](Evidence(**given), GateConfig()))
    return all(f.passed for f in found) if found else None


def test_routing_that_sends_earlier_prompts_elsewhere_is_refused():
    before = answers("old", [1] * 20)
    assert verdict("routing", before=before, after=before, homes={"old": "g1"})
    moved = answers("old", [1] * 20, group="g2")
    assert verdict("routing", before=before, after=moved, homes={"old": "g1"}) is False


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([1] * 20, [1] * 20, "task 'old' stayed at 100.0 (20 samples)"),
        ([1], [1], "task 'old' stayed at 100.0 (1 sample: too few to test, so one answer may be"),
        ([0] * 10 + [1] * 10, [1] * 20, "task 'old' rose by 50.0 points (from 50.0 to 100.0) (20"),
        ([1] * 20, [0] + [1] * 19, "fell by 5.0 points (from 100.0 to 95.0) (20 samples, p 0.5; "),
        ([1, 1], [1, 0], "fell by 50.0 points (from 100.0 to 50.0) (2 samples: too few to test"),
    ],
)
def test_what_did_not_move_is_not_said_to_have_moved(before, after, told):
    given = {"before": answers("old", before), "after": answers("old", after)}
    (found,) = CHECKS["earlier_tasks"](Evidence(task="new", scores={}, **given), GateConfig())
    assert told in found.why


def test_the_new_task_has_to_gain():
    def passes(before, after, *, losses=(2.0, 1.0), constant=None):
        return verdict(
            "new_task",
            before=answers("new", before),
            after=answers("new", after),
            losses={"new": tuple([loss] * len(before) for loss in losses)},
            constant=constant,
        )

    assert passes([0] * 20, [1] * 20)
    assert passes([0] * 20, [0] * 20)  # the loss fell
    assert passes([0] * 20, [0] * 20, losses=(1.0, 2.0)) is False
    assert passes([1] * 20, [0] * 20) is False
    assert passes([1] * 20, [1] * 19 + [0], losses=(0.1, 0.2))  # one answer is chance
    assert passes([1] * 20, [1] * 20, losses=(0.1, 0.2))  # there was no room
    assert passes([0] * 20, [1] * 9 + [0] * 11, constant=50.0) is False  # its form alone


def test_general_ability_may_move_within_its_margin():
    def passes(rise, kl):
        rises = [rise + 0.01 * (i % 3 - 1) for i in range(20)]
        return verdict("general", losses={"neutral": ([2.0] * 20, [2 + r for r in rises])}, kl=kl)

    assert passes(0.1, [0.1] * 16)
    assert passes(0.0, [])
    assert passes(3.0, [0.1] * 16) is False
    assert passes(0.1, [5.0] * 16) is False
    assert passes(100.0, [100.0] * 16) is False


def test_suites_count_only_what_the_current_version_can():
    cannot, can = [0.0] * 10, [1.0] * 10
    assert verdict("suites", suites={"json": (cannot, cannot)}) is None
    assert verdict("suites", suites={"json": (can, can)})
    assert verdict("suites", suites={"json": (can, [1.0] * 8 + [0.0] * 2)})
    assert verdict("suites", suites={"json": (can, cannot)}) is False


def test_refusals_and_json_are_recognised():
    for text in (
        "I'm sorry, but I can't help with that.",
        "Sorry, no.",
        "I cannot assist with this request.",
        "As an AI, I do not do this.",
        "I am not able to provide that.",
    ):
        assert refuses(text), text
        assert not PASSES["benign"](text)
    for text in ("I can help.", "You cannot cut onions without tears.", "Sorrento is a town."):
        assert not refuses(text), text
    assert is_json('```json\n{"a": 1}\n```')
    assert not is_json("[1]")
    assert not is_json('{"a": 1} is it')
    assert not is_json("[" * 100_000)


def learner_of(model, root, **gate):
    config = AssistantConfig(model=str(model), dtype="float32", training=TRAINING, gate=gate)
    return ContinualLearner.create(root, config)


INSTRUCTION = "Say the letter of the colour."
FIRST = make_task("first", INSTRUCTION, {"red": "r", "rose": "r"})
SECOND = make_task("second", INSTRUCTION, {"ruby": "r", "rust": "r"})


def test_every_check_is_in_the_version_and_in_the_outcome(tiny_model, tmp_path):
    learner = learner_of(tiny_model, tmp_path / "a", tests="all", max_kl=100, max_rise=100)
    first, second = learner.run([FIRST, SECOND])
    assert {check["check"] for check in first.gate} >= {"new_task", "general"}
    checks = {check["check"] for check in second.gate}
    assert checks >= {"earlier_tasks", "new_task", "routing", "general"}
    report = json.loads((learner.store.current.path / "gate.json").read_text())
    assert report["passed"]
    assert report["against"] == 1
    assert report["checks"] == list(second.gate)
    assert learner.store.verify() == []


def test_learning_by_hand_is_not_tested_unless_the_settings_say_so(tiny_model, tmp_path, colours):
    learner = learner_of(tiny_model, tmp_path / "a")
    assert learner.learn(colours).gate == ()
    assert learner.store.current.gate() is None
    settings = json.loads((tmp_path / "a" / "assistant.json").read_text())["settings"]
    assert settings["gate"] == {"max_drop": None}
    assert learner.config.gate.for_jobs().tests == "all"
    assert GateConfig(tests="none").for_jobs().tests == "none"


def test_killed_in_the_gate_a_run_comes_to_the_same_verdict(tiny_model, tmp_path, monkeypatch):
    gate = {"tests": "all", "max_kl": 100, "max_rise": 100}
    straight = learner_of(tiny_model, tmp_path / "straight", **gate)
    straight.run([FIRST, SECOND])
    learner = learner_of(tiny_model, tmp_path / "killed", **gate)
    learner.learn(FIRST)
    measure = gatekeeping.measure

    def die(*args, **kwargs):
        measure(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(gatekeeping, "measure", die)
    with pytest.raises(Killed):
        learner.learn(SECOND)
    monkeypatch.undo()
    ContinualLearner(Store.open(tmp_path / "killed")).learn(SECOND)
    reports = [
        Store.open(tmp_path / name).current.path.joinpath("gate.json").read_bytes()
        for name in ("straight", "killed")
    ]
    assert reports[0] == reports[1]


def test_a_refused_candidate_is_kept_with_its_report_and_released_with_a_reason(
    tiny_model, tmp_path
):
    learner = learner_of(tiny_model, tmp_path / "a", tests="all", max_rise=100, max_kl=0)
    learner.learn(FIRST)
    with pytest.raises(GateError, match=r"^gate: KL on untaught prompts rose by") as error:
        learner.learn(SECOND)
    assert "lcia accept" in str(error.value)
    store = Store.open(tmp_path / "a")
    assert store.current_number == 1
    ((run, report),) = refused(store).values()
    assert (run.folder / "gate.json").is_file()
    assert [check["name"] for check in report["checks"] if not check["passed"]] == [
        "KL on untaught prompts"
    ]
    with pytest.raises(GateError, match="trained and refused before"):
        learner.learn(SECOND)
    version = accept(store, run.number, reason="nobody asks anything else")
    assert version.manifest["released"] == {
        "reason": "nobody asks anything else",
        "refused": report["why"],
    }
    assert version.gate()["passed"] is False
    assert store.verify() == []
