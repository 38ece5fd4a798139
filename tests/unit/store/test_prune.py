"""Versions nobody will go back to are removed; what others need, and what was scored, stays."""

import shutil
from dataclasses import replace

import pytest

from lcia.config import AssistantConfig
from lcia.errors import StoreError
from lcia.files import discard, read_sealed, write_sealed
from lcia.learner import ContinualLearner, Store, rename_group
from lcia.reports.collect import run_record
from lcia.store import transaction
from lcia.store.prune import plan, prune


class Killed(BaseException):
    """Stands for the process dying."""


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory, colours, shades, numbers):
    """Versions 1 to 3 are colours, shades and numbers; 4 was rolled back; 5 is current, after 3."""
    config = AssistantConfig(
        model=str(tiny_model),
        dtype="float32",
        training={"max_steps": 1, "learning_rate": 1e-2},
        adapter={"r": 2},
    )
    learner = ContinualLearner.create(tmp_path_factory.mktemp("made") / "assistant", config)
    learner.run([colours, shades, numbers])
    rename_group(learner, "g1", "letters")
    learner.store.roll_back(3)
    rename_group(learner, "g1", "paint")
    return learner


@pytest.fixture
def learner(made, tmp_path):
    """A copy of its own."""
    root = shutil.copytree(made.store.root, tmp_path / "assistant")
    return ContinualLearner(Store.open(root), host=made.host)


def adapters(store):
    return sorted(p.relative_to(store.root).as_posix() for p in store.root.glob("groups/*/*"))


def content(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_versions_go_and_what_they_told_stays(learner, colours):
    store = learner.store
    matrix, report = store.current.matrix(), run_record("lcia", store)
    assert adapters(store) == ["groups/g1/0001", "groups/g1/0002", "groups/g2/0003"]
    pruning = prune(store, keep_last=1)
    assert (pruning.kept, pruning.told, pruning.removed) == ([0, 3, 5], [1, 2], [4])
    assert pruning.size_bytes > 0
    assert adapters(store) == ["groups/g1/0002", "groups/g2/0003"]
    assert store.verify() == []
    again = Store.open(store.root)
    assert (again.versions(), again.numbers()) == ([0, 3, 5], [0, 1, 2, 3, 5])
    assert [version.number for version in again.history()] == [1, 2, 3, 5]
    assert (again.current.matrix(), run_record("lcia", again)) == (matrix, report)
    learner = ContinualLearner(again, host=learner.host)
    assert learner.learn(colours).version == 1, "what was learned in a pruned version is known"
    assert again.roll_back(3).number == 3


def test_a_pruned_version_cannot_be_gone_back_to(learner):
    prune(learner.store, keep_last=1)
    for number in (1, 4):
        with pytest.raises(StoreError, match=rf"version {number} was pruned. Versions: 0, 3, 5."):
            learner.store.roll_back(number)


def test_learning_goes_on_after_pruning_and_no_number_is_given_twice(learner, numbers):
    learner.store.roll_back(1)
    prune(learner.store, keep_last=1)
    assert learner.store.versions() == [0, 1, 5]
    assert learner.learn(replace(numbers, name="more", train=numbers.train[:8])).version == 6
    assert learner.store.verify() == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 1}, [0, 3, 5]),
        ({"keep_last": 2}, [0, 3, 4, 5]),
        ({"keep_last": 1, "keep_every": 2}, [0, 2, 3, 4, 5]),
        ({"keep_last": 99}, [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_what_is_kept(learner, options, kept):
    before = content(learner.store.root)
    assert plan(learner.store, **options).kept == kept
    assert content(learner.store.root) == before, "a plan changes nothing"


def test_what_unfinished_runs_and_refused_candidates_build_on_stays(learner, numbers):
    store = learner.store
    more = replace(numbers, name="more")
    run = transaction.begin(store, more.name, lambda schema: "made of something")
    transaction.refuse(store, run, {"why": "", "before": {}, "after": {}})
    store.roll_back(2)
    transaction.begin(store, more.name, lambda schema: "made of something")
    store.roll_back(0)
    assert plan(store, keep_last=1).kept == [0, 2, 5]
    assert prune(store, keep_last=1).kept == [0, 2, 5]
    for number in (2, 5):
        store.version(number).check()


def test_pinned_versions_stay_until_they_are_unpinned(learner):
    store = learner.store
    assert prune(store, keep_last=1, pin=[1]).kept == [0, 1, 3, 5]
    assert read_sealed(store.root / "assistant.json")["pinned"] == [1]
    again = Store.open(store.root)
    assert (prune(again, keep_last=1).kept, again.verify()) == ([0, 1, 3, 5], [])
    again.version(1).check()
    assert again.roll_back(1).number == 1
    again.roll_back(5)
    assert prune(again, keep_last=1, unpin=[1]).kept == [0, 3, 5]
    assert "pinned" not in read_sealed(store.root / "assistant.json")
    with pytest.raises(StoreError, match="version 1 was pruned"):
        prune(again, keep_last=1, pin=[1])
    with pytest.raises(StoreError, match="has no version 77"):
        prune(again, keep_last=1, pin=[77])


@pytest.mark.parametrize("step", range(2))
def test_killed_while_pruning_the_same_call_goes_on(learner, step, monkeypatch):
    store, left = learner.store, step

    def dies(path):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        discard(path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("lcia.store.prune.discard", dies)
        prune(store, keep_last=1, pin=[3])
    assert store.verify() == []
    again = prune(Store.open(store.root), keep_last=1)
    assert (again.kept, again.pinned) == ([0, 3, 5], [3]), "pins are recorded before anything goes"
    assert adapters(store) == ["groups/g1/0002", "groups/g2/0003"]
    assert (store.numbers(), store.verify()) == ([0, 1, 2, 3, 5], [])


def test_any_changed_file_of_what_is_left_is_found(learner):
    root = learner.store.root
    prune(learner.store, keep_last=1)
    for path in [p for p in content(root) if p.stat().st_size]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert any(path.name in line for line in learner.store.verify()), path
        path.write_bytes(whole)
    assert learner.store.verify() == []


def test_a_record_that_says_the_current_version_is_pruned_is_refused(learner):
    path = learner.store.root / "assistant.json"
    for pruned in ([1, 5], "1", [None], [True]):
        write_sealed(path, {**read_sealed(path), "pruned": pruned})
        with pytest.raises(StoreError, match=r"assistant.json: .*pruned"):
            Store.open(learner.store.root)


def test_a_version_others_build_on_is_missed(learner):
    shutil.rmtree(learner.store.root / "versions" / "0002")
    (finding,) = learner.store.verify()
    assert "versions/0002 (version 2): is missing" in finding
