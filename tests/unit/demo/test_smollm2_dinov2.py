"""The small model that sees, and the tasks about images."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from lcia.data import Image, Message, Sample, load_stream
from lcia.demo import images, smollm2_dinov2
from lcia.demo.images import COLOURS, SHAPES, SIDE, WORDS
from lcia.demo.smollm2_dinov2 import IMAGE, LAYERS, captions, compose, read_tower
from lcia.errors import DataError, MissingDependencyError
from lcia.files import sha256_of
from lcia.models import AdapterHost, load_model
from lcia.registry import SCORERS


@pytest.fixture(scope="module")
def reference():
    """A DINOv2 of twelve narrow layers with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=1, image_size=70, patch_size=14
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def onnx_file(reference, tmp_path_factory):
    """The same as torch exports it: linear weights transposed and without their names."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("onnx")
    reference.save_pretrained(folder / "reference")
    from safetensors.torch import load_file

    weights = load_file(folder / "reference" / "model.safetensors")
    arrays, nodes = {}, []
    for name, value in weights.items():
        if name == "embeddings.position_embeddings":
            arrays["onnx::Concat_1"], arrays["onnx::Reshape_2"] = value[:, :1], value[:, 1:]
        elif name == "embeddings.mask_token":
            continue  # unused when answering: not exported
        elif value.ndim == 2:
            hidden = f"onnx::MatMul_{len(arrays)}"
            arrays[hidden] = value.T.contiguous()
            path = f"/backbone.{name}".replace(".", "/").removesuffix("/weight")
            nodes.append(onnx.helper.make_node("MatMul", ["x", hidden], ["y"], f"{path}/MatMul"))
        else:
            arrays[f"backbone.{name}"] = value
    arrays["decoder.final_conv.bias"] = torch.zeros(1)
    tensors = [onnx.numpy_helper.from_array(v.numpy(), n) for n, v in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "backbone", [], [], initializer=tensors)
    onnx.save(onnx.helper.make_model(graph), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def tower(onnx_file, tmp_path):
    return read_tower(onnx_file, folder=tmp_path)


def test_the_tower_has_the_features_of_the_exported_model(reference, tower):
    pixels = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 56, 56)), dtype=torch.float32)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True).hidden_states[LAYERS]
        found = tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert len(tower(pixels, output_hidden_states=True).hidden_states) == LAYERS + 1
    assert torch.allclose(found, expected, atol=1e-5)


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(smollm2_dinov2.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r'package onnx.* "lcia\[visual\]"'):
        read_tower(tmp_path / "model.onnx", folder=tmp_path)


@pytest.fixture
def composed(tower, tiny_model):
    return compose(tower, str(tiny_model))


def test_it_is_a_llava_that_knows_its_parts(composed, tower, tiny_model, tmp_path):
    model, processor = composed
    language = load_model(str(tiny_model), dtype="float32").model
    for name, value in language.model.state_dict().items():
        found = model.model.language_model.state_dict()[name]
        assert torch.equal(found[: len(value)], value), "the vocabulary only grew"
    assert torch.equal(
        model.model.vision_tower.state_dict()["layernorm.weight"],
        tower.state_dict()["layernorm.weight"],
    )
    model.save_pretrained(tmp_path / "made")
    processor.save_pretrained(tmp_path / "made")
    host = AdapterHost(load_model(str(tmp_path / "made"), dtype="float32"))
    PILImage.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    asked = Message(role="user", content="What?", images=(Image(path=str(tmp_path / "red.png")),))
    ids = host.chat.prompts([[asked]])["input_ids"][0]
    assert (ids == host.base.tokenizer.convert_tokens_to_ids(IMAGE)).sum() == 16
    assert isinstance(host.generate([[asked]], [None], max_new_tokens=2)[0], str)


def test_a_fresh_projector_is_fitted_to_features_and_embeddings(composed):
    model, _ = composed
    pixels = torch.tensor(
        np.random.default_rng(1).normal(size=(40, 3, 56, 56)), dtype=torch.float32
    )
    projector = model.model.multi_modal_projector
    smollm2_dinov2.standardise(model, pixels)
    kept = []
    hooks = [
        layer.register_forward_hook(lambda _, i, out: kept.append(out))
        for layer in projector.children()
        if isinstance(layer, torch.nn.Linear)
    ]
    with torch.no_grad():
        model.model.get_image_features(pixels)
    for hook in hooks:
        hook.remove()
    inner, outer = (values.flatten(0, -2) for values in kept)
    assert inner.mean(dim=0).abs().max() < 1e-4
    assert 0.5 < inner.std() < 2
    assert outer.mean(dim=0).abs().max() < 1e-4
    assert outer.std(dim=0).mean() == pytest.approx(
        model.get_input_embeddings().weight.std().item(), rel=1e-3
    )


def test_aligning_moves_the_projector_alone_and_lowers_the_loss(composed, tmp_path, monkeypatch):
    model, processor = composed
    samples = []
    for i in range(96):
        colour = ("red", "blue")[i % 2]
        path = tmp_path / f"{i}.png"
        PILImage.new("RGB", (56, 56), colour).save(path)
        asked = Message(role="user", content="Describe.", images=(Image(path=str(path)),))
        samples.append(Sample(id=str(i), messages=(asked,), answers=(colour,)))
    monkeypatch.setattr(smollm2_dinov2, "captions", lambda each: tuple(samples))
    logged = []
    monkeypatch.setattr(smollm2_dinov2, "EVERY", 1)
    monkeypatch.setattr(smollm2_dinov2.logger, "info", lambda text, *values: logged.append(values))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smollm2_dinov2.align(model, processor)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    assert [step for step, *_ in logged] == list(range(1, 7))
    assert logged[-1][2] < logged[0][2]
    assert not any(p.requires_grad for p in model.parameters())


def fake_wheel(path: Path) -> Path:
    """easy-VQA in small: 24 images to train and 12 to test, every third without a shape asked."""
    import io
    import random

    draw = random.Random(0)
    with zipfile.ZipFile(path, "w") as wheel:
        for split, count in {"train": 24, "test": 12}.items():
            folder, questions = f"easy_vqa/data/{split}", []
            for i in range(count):
                shape, colour = draw.choice(SHAPES), draw.choice(list(COLOURS))
                box = (10 + i, 12, 30 + i % 20, 40)
                image = images.shapes_image([(shape, colour, box)], draw=draw)
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                wheel.writestr(f"{folder}/images/{i}.png", buffer.getvalue())
                questions.append(["what color is the shape?", colour, i])
                questions += [["what shape is present?", shape, i]] if i % 3 else []
                questions.append(["is there a circle?", "yes", i])
            wheel.writestr(f"{folder}/questions.json", json.dumps(questions))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    (folder / "wheels").mkdir()
    wheel = fake_wheel(folder / "wheels" / "easy-vqa-1.0.whl")
    images.easy_vqa.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCIA_CACHE", str(folder))
        patch.setattr(images, "EASY_VQA_SHA256", sha256_of(wheel))
        yield folder
    images.easy_vqa.cache_clear()


@pytest.fixture(scope="module")
def tasks(cache):
    return {task.name: task for task in load_stream("builtin:visual")}


def test_tasks_and_their_instructions(tasks):
    instructions = {name: {s.instruction for s in task.train} for name, task in tasks.items()}
    assert all(len(found) == 1 for found in instructions.values())
    assert instructions["shapes"] == instructions["colours"] == instructions["yes_no"]
    assert instructions["digits"] == instructions["sums"]
    assert len({next(iter(found)) for found in instructions.values()}) == 5
    for task in tasks.values():
        assert (len(task.train), len(task.test)) == (160, 40)
        for sample in (*task.train, *task.test):
            assert sample.prompt.splitlines()[-1] == sample.instruction
            scorer = SCORERS.get(task.scorer)
            assert scorer(sample.answers[0], sample.answers) == 1


def test_no_image_is_in_train_and_test(tasks):
    for task in tasks.values():
        train, test = (
            {i.sha256 for s in part for i in s.images} for part in (task.train, task.test)
        )
        assert train.isdisjoint(test), task.name
        for sample in task.test:
            with PILImage.open(sample.images[0].path) as image:
                assert image.size == (SIDE, SIDE)
                assert image.mode == "RGB"


def test_boxes_hold_what_they_are_said_to_hold(tasks):
    for sample in tasks["boxes"].test:
        colour = COLOURS[sample.prompt.split()[1]]
        x1, y1, x2, y2 = (round(float(n) * SIDE) for n in json.loads(sample.answers[0]))
        with PILImage.open(sample.images[0].path) as image:
            found = [
                (x, y) for x in range(SIDE) for y in range(SIDE) if image.getpixel((x, y)) == colour
            ]
        assert found
        inside = [x1 - 3 <= x <= x2 + 3 and y1 - 3 <= y <= y2 + 3 for x, y in found]
        assert all(inside)


def test_drawing_again_gives_the_same_stream(cache, tasks):
    again = {task.name: task.fingerprint() for task in load_stream("builtin:visual")}
    assert again == {name: task.fingerprint() for name, task in tasks.items()}


def test_captions_name_what_the_images_show(cache):
    samples = captions(each=6)
    assert len(samples) == 5 * 6
    said = [sample.answers[0] for sample in samples]
    assert sum(text.removeprefix("the word ") in WORDS for text in said) == 6
    assert sum(text.startswith("the digits ") for text in said) == 6
    assert sum(" and a " in text for text in said) == 6


def test_another_wheel_is_refused(cache, monkeypatch):
    images.easy_vqa.cache_clear()
    monkeypatch.setattr(images, "EASY_VQA_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"easy-vqa-1.0.whl has SHA-256 \w{64}; expected 0{64}"):
        load_stream("builtin:visual")


def test_without_pip_or_network_it_says_so(cache, monkeypatch):
    images.easy_vqa.cache_clear()
    (cache / "wheels" / "easy-vqa-1.0.whl").unlink()

    def fail(requirement, folder):
        raise OSError("ERROR: no matching distribution")

    monkeypatch.setattr(images, "download_wheel", fail)
    with pytest.raises(DataError, match=r"easy-vqa==1.0 .* no matching distribution"):
        load_stream("builtin:visual")
