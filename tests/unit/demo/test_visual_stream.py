"""``builtin:visual``: what it asks is in the images, and no image is in train and test."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image as PILImage

from lcia.data import load_stream
from lcia.demo import images
from lcia.demo.captions import captions
from lcia.demo.images import COLOURS, SHAPES, SIDE, WORDS
from lcia.errors import DataError
from lcia.files import sha256_of
from lcia.registry import SCORERS


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
