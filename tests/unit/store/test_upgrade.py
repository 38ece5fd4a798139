"""Stores that earlier versions of lcia wrote: they open, answer, resume and learn on."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from campaign.upgrades import schemas, unpack
from lcia import Assistant
from lcia.data import Image, Message, Sample, Task, TaskConfig, load_task
from lcia.data.images import check_images
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.files import place_copy
from lcia.learner import ContinualLearner, Store
from lcia.store.samples import read_samples, write_samples


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
