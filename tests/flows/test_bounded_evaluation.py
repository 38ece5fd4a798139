"""``evaluation.samples``: a version answers some samples, and all says what it rests on."""

import json

import pytest

from conftest import make_task
from lcia.config import AssistantConfig
from lcia.errors import GateError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.learner import ContinualLearner, Store, retire_group
from lcia.models.host import AdapterHost
from lcia.store import version as version_module
from lcia.store.fingerprint import fingerprint
from lcia.store.transaction import refused

WORDS = ("red", "green", "blue", "white", "pink", "cyan")
BUDGET = 3


def stream():
    return [
        make_task(f"task{i}", f"Say letter {i % 3} of the colour.", {w: w[i % 3] for w in WORDS})
        for i in range(5)
    ]


def configure(model, **given) -> AssistantConfig:
    settings = {"evaluation": {"samples": BUDGET}, "grouping": {"groups": "per_task"}, **given}
    return AssistantConfig(
        model=str(model),
        dtype="float32",
        training={"max_steps": 1, "learning_rate": 1e-2},
        adapter={"r": 2},
        **settings,
    )


@pytest.fixture(scope="module")
def learned(tiny_model, tmp_path_factory):
    learner = ContinualLearner.create(
        tmp_path_factory.mktemp("bounded") / "assistant", configure(tiny_model)
    )
    learner.run(stream())
    return learner


def test_a_version_answers_so_many_and_the_new_task_whole(learned):
    for number in range(1, 6):
        version = learned.store.version(number)
        predictions = version.predictions()
        new = [p for p in predictions if p.task == version.manifest["task"]]
        assert len(new) == 4
        assert len(predictions) - len(new) <= BUDGET
        matrix = version.matrix()
        counts = dict(zip(matrix.tasks, matrix.counts[-1], strict=True))
        for name, score in matrix.row(number).items():
            own = [p.score for p in predictions if p.task == name]
            assert counts[name] == (len(own) or None)
            assert score == (pytest.approx(100 * sum(own) / len(own)) if own else None)
        assert version.manifest["basis"] == {
            "tasks": len({p.task for p in predictions}),
            "of_tasks": number,
            "samples": len(predictions),
        }


def test_metrics_rest_on_what_was_measured(learned):
    matrix = learned.store.current.matrix()
    last = matrix.row(5)
    earlier = [s for name, s in last.items() if s is not None and name != "task4"]
    expected = (4 * sum(earlier) / len(earlier) + last["task4"]) / 5
    found = summarise(matrix)
    assert found["average_accuracy"] == pytest.approx(expected)
    assert found["forgetting"] is None, "a maximum over a few samples is no accuracy"
    assert found["forward_transfer"] is not None, "new tasks are answered whole, before and after"


def test_a_matrix_with_counts_comes_back_and_is_small(learned, tmp_path):
    matrix = learned.store.current.matrix()
    assert AccuracyMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix
    matrix.save(tmp_path / "matrix.json")
    assert AccuracyMatrix.load(tmp_path / "matrix.json") == matrix
    assert "null" not in (tmp_path / "matrix.json").read_text()


def test_generating_is_bounded_and_only_drawn_tasks_are_read(learned, monkeypatch):
    answered = []
    answer = AdapterHost.generate

    def counted(host, prompts, *args, **options):
        answered.extend(prompts)
        return answer(host, prompts, *args, **options)

    monkeypatch.setattr(AdapterHost, "generate", counted)
    read = []
    read_task = version_module._read_task

    def noted(name, folder):
        read.append(name)
        return read_task(name, folder)

    monkeypatch.setattr(version_module, "_read_task", noted)
    new = make_task("another", "Say the last letter of it.", {w: w[-1] for w in WORDS})
    store = learned.store
    before = store.current_number
    learned.learn(new)
    store.roll_back(before)
    assert len(answered) <= 3 * len(new.test) + BUDGET
    assert len(set(read)) <= BUDGET


def test_changing_groups_measures_the_last_row_anew(learned):
    store, before = learned.store, learned.store.current_number
    version = retire_group(learned, "g1")
    matrix, row = version.matrix(), version.matrix().learned
    assert {p.task for p in version.predictions()} == {
        name for name, score in matrix.row(row).items() if score is not None
    }
    assert matrix.counts[-1][-1] == 4, "of the last task all samples count"
    store.roll_back(before)


def test_the_gate_compares_the_same_samples(tiny_model, tmp_path):
    config = configure(tiny_model, gate={"tests": "all"}, grouping={"groups": "one"})
    learner = ContinualLearner.create(tmp_path / "gated", config)
    for task in stream()[:3]:
        try:
            outcome = learner.learn(task)
        except GateError:
            continue
        names = {check["name"] for check in outcome.gate if check["check"] == "earlier_tasks"}
        assert task.name == "task0" or names
    reports = [v.gate() for v in learner.store.history()]
    reports += [report for _, report in refused(learner.store).values()]
    pairs = [r for r in reports if r and len(r["after"]) > 1]
    assert pairs
    for report in pairs:
        assert {t for t, s in report["before"].items() if s is not None} >= report["after"].keys()
        for check in report["checks"]:
            if check["check"] == "earlier_tasks":
                assert check["n"] <= BUDGET


def test_the_command_line_says_what_scores_rest_on(learned, lcia):
    told = json.loads(lcia("eval", learned.store.root, "--json").stdout)
    assert told["basis"] == learned.store.current.manifest["basis"]
    shown = lcia("eval", learned.store.root).stdout
    assert "n=1" in shown
    assert f"{told['basis']['samples']} held-out samples" in shown


def test_off_changes_neither_record_nor_fingerprint(tiny_model, colours, tmp_path):
    off = configure(tiny_model, evaluation={})
    assert "evaluation" not in off.model_dump()
    unset = off.model_dump(mode="json")
    assert fingerprint(off, colours, model="m") == fingerprint(
        AssistantConfig(**unset), colours, model="m"
    )
    assert fingerprint(configure(tiny_model), colours, model="m") != fingerprint(
        off, colours, model="m"
    )
    store = Store.create(tmp_path / "store", configure(tiny_model), content_hash="0")
    assert store.config.evaluation.samples == BUDGET
