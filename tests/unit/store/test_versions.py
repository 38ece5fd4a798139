"""Versions: those of earlier schemas open, those nobody will go back to are removed."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from campaign.upgrades import schemas, unpack
from lcia import Assistant
from lcia.config import AssistantConfig
from lcia.data import Image, Message, Sample, Task, TaskConfig, load_task
from lcia.data.images import check_images
from lcia.errors import StoreError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.files import discard, place_copy, read_sealed, write_sealed
from lcia.learner import ContinualLearner, Store, rename_group
from lcia.reports.collect import run_record
from lcia.store import transaction
from lcia.store.prune import plan, prune
from lcia.store.samples import read_samples, write_samples


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


@dataclass(frozen=True)
class Earlier:
    """A copy of a fixture; the working directory is beside it, where its model is."""

    root: Path
    fixture: Path

    def task(self, name: str) -> Task:
        data = self.fixture / "data"
        return load_task(
            TaskConfig(
                name=name,
                train=data / f"{name}-train.jsonl",
                test=data / f"{name}-test.jsonl",
                instruction="first_line",
                max_new_tokens=1,
            )
        )

    def interrupt(self) -> Path:
        """Put the interrupted run in its place; return its folder."""
        shutil.copytree(self.fixture / "interrupted", self.root / "runs", dirs_exist_ok=True)
        return next((self.root / "runs").iterdir())

    def adapter(self) -> dict[str, torch.Tensor]:
        return tensors_in(Store.open(self.root).current.adapters["g1"][1])

    def expected(self) -> dict[str, torch.Tensor]:
        return tensors_in(self.fixture / "expected" / "g1")


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}: {name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.fixture(params=schemas())
def earlier(request, tmp_path, monkeypatch) -> Earlier:
    fixture = unpack(request.param, tmp_path / "fixture")
    for name in ("assistant", "model"):
        shutil.copytree(fixture / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Earlier(tmp_path / "assistant", fixture)


def test_an_earlier_store_opens_whole_and_nothing_is_written(earlier):
    def content():
        return {p: p.read_bytes() for p in earlier.root.rglob("*") if p.is_file()}

    before = content()
    store = Store.open(earlier.root)
    assert store.versions() == [0, 1, 2, 3, 4]
    assert store.verify() == []
    assert [(v.manifest["task"], v.manifest["group"]) for v in store.history()] == [
        ("colours", "g1"),
        ("shades", "g1"),
        ("numbers", "g2"),
        (None, None),
    ]
    assert {g.id: g.name for g in store.current.codebook().groups} == {"g1": "g1", "g2": "digits"}
    assert content() == before


def test_an_earlier_store_answers_as_it_did(earlier):
    store = Store.open(earlier.root)
    assert ContinualLearner(store).evaluate() == store.current.predictions()
    answer = Assistant.open(earlier.root).answer("Write this number as a digit.\n\ntwo 7")
    assert (answer.group, answer.reason) == ("g2", "reached")


def test_an_earlier_store_knows_what_it_learned(earlier):
    outcome = ContinualLearner(Store.open(earlier.root)).learn(earlier.task("shades"))
    assert (outcome.version, outcome.group) == (2, "g1")


def test_an_interrupted_run_of_an_earlier_lcia_ends_as_it_would_have_there(earlier):
    run = earlier.interrupt()
    outcome = ContinualLearner(Store.open(earlier.root)).learn(earlier.task("tones"))
    assert (outcome.version, outcome.group) == (5, "g1")
    assert not run.exists()
    store = Store.open(earlier.root)
    events = [event["event"] for event in store.current.journal()]
    assert "resumed" in events, "it went on from its checkpoint"
    assert [e["step"] for e in store.current.journal() if e["event"] == "step"] == [*range(1, 7)]
    expected, found = earlier.expected(), earlier.adapter()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Another CPU rounds otherwise; six steps at this rate move every value by far more.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
    assert store.current.matrix() == AccuracyMatrix.load(earlier.fixture / "expected/matrix.json")
    assert store.verify() == []


def test_an_interrupted_run_of_an_earlier_lcia_equals_a_whole_one_of_today(earlier, tmp_path):
    shutil.copytree(earlier.root, tmp_path / "straight")
    earlier.interrupt()
    ContinualLearner(Store.open(earlier.root)).learn(earlier.task("tones"))
    ContinualLearner(Store.open(tmp_path / "straight")).learn(earlier.task("tones"))
    resumed, straight = earlier.adapter(), Earlier(tmp_path / "straight", earlier.fixture).adapter()
    assert resumed.keys() == straight.keys() == earlier.expected().keys()
    # Its first half was made elsewhere: to the bit only where this processor rounds as that one.
    rounds_alike = all(torch.equal(straight[n], v) for n, v in earlier.expected().items())
    close = {"rtol": 0, "atol": 0} if rounds_alike else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(resumed, straight, **close)


def test_an_earlier_store_learns_on_and_rolls_back(earlier):
    learner = ContinualLearner(Store.open(earlier.root))
    outcome = learner.learn(earlier.task("more-numbers"))
    assert (outcome.version, outcome.group, outcome.reason) == (5, "g2", "reuse")
    again = Store.open(earlier.root)
    assert again.verify() == []
    assert again.roll_back(2).adapters["g1"][0] == "g1@0002"
    assert Store.open(earlier.root).current.number == 2


def test_samples_and_their_images_survive_the_loss_of_the_originals(tmp_path):
    originals = tmp_path / "originals"
    originals.mkdir()
    for name, colour in {"a.PNG": "red", "b.png": "blue", "c.png": "blue"}.items():
        PILImage.new("RGB", (4, 4), colour).save(originals / name)

    def about(*names: str) -> Sample:
        images = tuple(Image(path=str(originals / name), at=i) for i, name in enumerate(names))
        asked = Message(role="user", content="Is it?", images=images)
        rules = Message(role="system", content="Be brief.")
        return Sample(id="-".join(names), messages=(rules, asked), answers=("yes", "yes"))

    samples = (about("a.PNG", "b.png"), about("c.png"), replace(about(), instruction="Is it?"))
    task = check_images([Task(name="t", train=samples, test=samples)])[0]
    (tmp_path / "draft").mkdir()
    write_samples(tmp_path / "draft" / "samples.jsonl", task.test)
    place_copy(tmp_path / "draft", tmp_path / "kept")
    for path in originals.iterdir():
        path.unlink()

    found = read_samples(tmp_path / "kept" / "samples.jsonl")
    assert replace(task, train=found, test=found).fingerprint() == task.fingerprint()
    assert len(list((tmp_path / "kept" / "images").iterdir())) == 2, "equal images once"
    for image in (image for sample in found for image in sample.images):
        with PILImage.open(image.path) as opened:
            assert opened.size == (4, 4)
