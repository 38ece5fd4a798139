"""A vision-language assistant: the projector is averaged, resumed, shared or left alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner, Store
from lcia.models import load_model
from lcia.models.visual import PROJECTOR
from lcia.registry import METHODS
from lcia.store.samples import VALIDATION, kept_with
from tiny_visual import image_task, llava, save

TRAINING = {
    "num_train_epochs": 1.5,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_steps": 1,
}
SAY, NAME = "Say the letter of the colour.", "Name the colour in German, please."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(llava, tmp_path_factory.mktemp("llava"))


@pytest.fixture
def tasks(tmp_path):
    return [
        image_task(tmp_path, "letters", instruction=SAY, answers={"red": "r", "blue": "b"}),
        image_task(tmp_path, "more", instruction=SAY, answers={"lime": "l", "gold": "g"}),
        image_task(tmp_path, "german", instruction=NAME, answers={"red": "rot", "gold": "au"}),
    ]


def configure(model, projector="per_group", projector_rate=1e-2, **settings) -> AssistantConfig:
    mode = {"mode": projector, "learning_rate": projector_rate}
    defaults = {"training": TRAINING, "dtype": "float32", "adapter": {"r": 2}}
    return AssistantConfig(model=str(model), projector=mode, **{**defaults, **settings})


def files(store: Store) -> dict[str, bytes]:
    return {
        f"{group}/{path.name}": path.read_bytes()
        for group, (_, folder) in store.current.adapters.items()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def learn(root, config, tasks) -> Store:
    learner = ContinualLearner.create(root, config)
    learner.run(tasks)
    return learner.store


def test_the_average_covers_the_projector(model, tmp_path, tasks):
    stays = {"rule": {"name": "fixed", "beta": 1 - 1e-9}}
    store = learn(tmp_path / "a", configure(model, **stays), tasks[:2])
    first, second = (store.root / "groups" / "g1" / version for version in ("0001", "0002"))
    assert [v.manifest["group"] for v in store.history()] == ["g1", "g1"]
    for name in (PROJECTOR, "adapter_model.safetensors"):
        before, after = load_file(first / name), load_file(second / name)
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    plain = learn(tmp_path / "b", configure(model, method="sequential"), tasks[:2])
    before, after = (
        load_file(plain.root / "groups" / "g1" / version / PROJECTOR)
        for version in ("0001", "0002")
    )
    assert any(not torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_its_learning_rate_is_its_own(model, tmp_path, tasks):
    config = configure(model, projector_rate=0.0)
    store = learn(tmp_path / "a", config, tasks[:1])
    folder = store.current.adapters["g1"][1]
    own = dict(load_model(str(model), dtype="float32").model.named_parameters())
    assert all(
        torch.equal(own[name], value) for name, value in load_file(folder / PROJECTOR).items()
    )
    adapter = load_file(folder / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)


class Killed(BaseException):
    """Stands for the process dying: nothing in lcia catches it."""


def test_killed_and_resumed_is_equal_to_the_bit(model, tmp_path, tasks, monkeypatch):
    from lcia.learner.training import _Steps

    straight = learn(tmp_path / "straight", configure(model), tasks[:2])
    learner = ContinualLearner.create(tmp_path / "cut", configure(model))
    learner.learn(tasks[0])
    seen = []

    def die(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 2:  # the second step is done and not yet saved
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_Steps, "on_step_end", die)
        with pytest.raises(Killed):
            learner.learn(tasks[1])
    again = ContinualLearner(Store.open(tmp_path / "cut"))
    again.learn(tasks[1])
    assert files(again.store) == files(straight)


def test_a_shared_projector_answers_for_every_group(model, tmp_path, tasks):
    store = learn(tmp_path / "a", configure(model, "shared"), [tasks[0], tasks[2], tasks[1]])
    versions = store.history()
    assert [v.manifest["group"] for v in versions] == ["g1", "g2", "g1"]
    for version in versions:
        found = {(folder / PROJECTOR).read_bytes() for _, folder in version.adapters.values()}
        assert len(found) == 1, "one projector for all groups of a version"
    adapters = [v.adapters["g1"][1] / "adapter_model.safetensors" for v in versions]
    assert adapters[0].read_bytes() == adapters[1].read_bytes(), "another task left the LoRA alone"
    assert {p.adapter for p in versions[1].predictions()} == {"g1@0002", "g2@0002"}
    assert store.verify() == []


def test_the_latest_adapter_is_the_last_task_s_where_all_share_a_projector(model, tmp_path, tasks):
    learner = ContinualLearner.create(
        tmp_path / "a", configure(model, "shared", grouping={"start": "latest"})
    )
    learner.run([tasks[0], tasks[2]])  # g1, g2: both have a folder of version 2
    still = {"training": {**TRAINING, "learning_rate": 0.0}}
    learner.config = learner.config.model_copy(update=still)
    other = image_task(tmp_path, "other", instruction="Which is it?", answers={"red": "x"})
    assert learner.learn(other).group == "g3"
    weights = {
        group: load_file(folder / "adapter_model.safetensors")
        for group, (_, folder) in learner.store.current.adapters.items()
    }
    for name, values in weights["g3"].items():
        assert torch.equal(values, weights["g2"][name])
    assert any(not torch.equal(v, weights["g1"][n]) for n, v in weights["g3"].items())


def test_a_frozen_projector_is_not_saved(model, tmp_path, tasks):
    store = learn(tmp_path / "a", configure(model, "frozen"), tasks[:1])
    assert not (store.current.adapters["g1"][1] / PROJECTOR).exists()


def test_held_out_images_live_in_the_store(model, tmp_path, tasks):
    store = learn(tmp_path / "a", configure(model), tasks[:1])
    (task,) = store.current.tasks()
    images = [image for sample in task.test for image in sample.images]
    assert images
    assert all(store.root in path.parents for path in [Path(image.path) for image in images])


def test_merging_groups_merges_their_projectors(model, tmp_path, tasks):
    from lcia.learner.lifecycle import merge_groups

    store = learn(tmp_path / "a", configure(model), [tasks[0], tasks[2]])
    parts = [load_file(folder / PROJECTOR) for _, folder in store.current.adapters.values()]
    merged = merge_groups(ContinualLearner(store), "g1", "g2", weight=0.25)
    found = load_file(merged.adapters["g1"][1] / PROJECTOR)
    for name, value in found.items():
        assert torch.allclose(value, 0.25 * parts[0][name] + 0.75 * parts[1][name], atol=1e-6)


def test_an_assistant_answers_about_an_image(model, tmp_path, tasks):
    from lcia import Assistant
    from lcia.errors import DataError

    store = learn(tmp_path / "a", configure(model), tasks[:1])
    assistant = Assistant.open(store.root)
    sample = next(s for s in store.current.tasks()[0].test if s.images)
    known = next(p for p in store.current.predictions() if p.sample == sample.id)
    images = [image.path for image in sample.images]
    answer = assistant.answer(sample.prompt, images=images, max_new_tokens=4)
    assert (answer.text, answer.group) == (known.prediction, "g1")
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        assistant.answer("What?", images=[tmp_path / "gone.png"])


def test_a_text_model_refuses_images(tiny_model, tmp_path, tasks):
    from lcia.errors import ConfigError

    with pytest.raises(ConfigError, match=r"reads text only, and '.*\.png' is an image"):
        learn(tmp_path / "a", configure(tiny_model, "frozen"), tasks[:1])


def test_bfloat16_and_gradient_checkpointing(model, tmp_path, tasks):
    training = {**TRAINING, "gradient_checkpointing": True}
    store = learn(tmp_path / "a", configure(model, dtype="bfloat16", training=training), tasks[:2])
    (_, folder) = store.current.adapters["g1"]
    for name in (PROJECTOR, "adapter_model.safetensors"):
        values = load_file(folder / name).values()
        assert {value.dtype for value in values} == {torch.float32}
        assert all(value.isfinite().all() for value in values)
    again = ContinualLearner(Store.open(store.root)).evaluate()
    assert [p.prediction for p in again] == [p.prediction for p in store.current.predictions()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_learns_with_images(model, tmp_path, tasks, method):
    store = learn(tmp_path / "a", configure(model, method=method), tasks)
    assert len(store.history()) == 3
    assert all((folder / PROJECTOR).is_file() for _, folder in store.current.adapters.values())
    assert store.verify() == []


@pytest.mark.parametrize("projector", ["per_group", "frozen"])
def test_what_a_retrained_group_becomes_is_measured_with_images(model, tmp_path, projector):
    letters, more = (
        image_task(tmp_path, name, instruction=SAY, answers=answers, train=48)
        for name, answers in (
            ("letters", {"red": "r", "blue": "b"}),
            ("more", {"lime": "l", "gold": "g"}),
        )
    )
    store = learn(tmp_path / "assistant", configure(model, projector), [letters, more])
    choice = store.current.manifest["choice"]
    assert {row["name"] for row in choice["table"]} >= {"trained", "precision-1"}
    assert choice["unmeasured"] == 0
    assert all(set(row["losses"]) == {"letters", "more"} for row in choice["table"])
    (_, folder), *_ = store.current.adapters.values()
    held = kept_with(folder, VALIDATION)
    assert {name for _, name in held} >= {"letters"}
    assert any(sample.messages[0].images for sample, _ in held)
    assert store.verify() == []
