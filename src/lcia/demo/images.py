"""Small images: drawn shapes, handwritten digits, written words, and those of easy-VQA."""

import importlib
import json
import os
import random
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from lcia.data.sample import Image
from lcia.demo.wheels import cache_dir, download_wheel
from lcia.errors import DataError, MissingDependencyError
from lcia.files import sha256_of

SIDE = 56
EASY_VQA = "easy-vqa==1.0"
EASY_VQA_SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 140, 40),
    "blue": (30, 50, 220),
    "yellow": (240, 210, 20),
    "black": (10, 10, 10),
    "brown": (140, 80, 30),
}
SHAPES = ("circle", "triangle", "rectangle")
WORDS = tuple(
    "cat dog sun car hat bus cup key map pen box egg fox ice jam leg net owl pig toy".split()  # noqa: SIM905
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class EasyImage:
    """An image of easy-VQA: one coloured shape.

    Attributes:
        number: of the image within its split.
        shape: what it shows.
        colour: its colour.
        image: 64 by 64 pixels.
    """

    number: int
    shape: str
    colour: str
    image: Any


@cache
def easy_vqa(split: str) -> tuple[EasyImage, ...]:
    """Return the images of ``train`` or ``test`` whose questions tell shape and colour.

    Raises:
        DataError: the wheel cannot be downloaded, or is another.

    Source: easy-VQA (Victor Zhou, MIT), whose wheel carries images and questions.
    """
    told: dict[int, dict[str, str]] = {}
    with zipfile.ZipFile(_easy_vqa_wheel()) as wheel:
        folder = f"easy_vqa/data/{split}"
        for question, answer, number in json.loads(wheel.read(f"{folder}/questions.json")):
            about = told.setdefault(number, {})
            if question.startswith("what"):
                about["shape" if answer in SHAPES else "colour"] = answer
        return tuple(
            EasyImage(number=number, image=_read(wheel, f"{folder}/images/{number}.png"), **about)
            for number, about in sorted(told.items())
            if len(about) == 2
        )


@cache
def digits() -> tuple[tuple[Any, int], ...]:
    """Return scikit-learn's 1,797 handwritten digits, 8 by 8 grey pixels, with what they are.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        data = importlib.import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"builtin:visual needs the module {error.name}, which is not installed. "
            'Install it with: pip install "lcia[visual]"'
        ) from error
    grey = (255 - data.images * 15).astype("uint8")
    return tuple(
        (PILImage.fromarray(pixels), int(digit))
        for pixels, digit in zip(grey, data.target, strict=True)
    )


def side_by_side(images: Sequence[Any]) -> Any:
    """Return small images in a row on a white square."""
    width = SIDE // len(images)
    row = PILImage.new("RGB", (SIDE, SIDE), "white")
    for i, image in enumerate(images):
        larger = image.convert("RGB").resize((width, width), PILImage.Resampling.BICUBIC)
        row.paste(larger, (i * width, (SIDE - width) // 2))
    return row


def shapes_image(shapes: Sequence[tuple[str, str, Box]], *, draw: random.Random) -> Any:
    """Draw shapes, each with its colour and box in pixels, on a light background."""
    light = [draw.randrange(225, 256) for _ in range(3)]
    image = PILImage.new("RGB", (SIDE, SIDE), tuple(light))
    canvas = ImageDraw.Draw(image)
    for shape, colour, (left, top, right, bottom) in shapes:
        fill = COLOURS[colour]
        if shape == "circle":
            canvas.ellipse((left, top, right, bottom), fill=fill)
        elif shape == "rectangle":
            canvas.rectangle((left, top, right, bottom), fill=fill)
        else:
            canvas.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
    return image


def word_image(word: str, *, draw: random.Random) -> Any:
    """Write a word in a dark colour, a little larger or smaller, here or there."""
    light = [draw.randrange(225, 256) for _ in range(3)]
    image = PILImage.new("RGB", (SIDE, SIDE), tuple(light))
    font = ImageFont.load_default(draw.randrange(24, 29))
    left, top, right, bottom = font.getbbox(word)
    x = draw.uniform(0, max(0.0, SIDE - (right - left))) - left
    y = draw.uniform(0.25, 0.75) * (SIDE - (bottom - top)) - top
    ink = COLOURS[draw.choice(["black", "blue", "red", "brown"])]
    ImageDraw.Draw(image).text((x, y), word, font=font, fill=ink)
    return image


def stored(image: Any, name: str) -> Image:
    """Write an image to the cache, in one step, and return it as part of a message."""
    path = cache_dir() / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".png", delete=False) as file:
        image.convert("RGB").save(file, format="PNG")
    os.replace(file.name, path)
    return Image(path=str(path), sha256=sha256_of(path))


def _read(wheel: zipfile.ZipFile, member: str) -> Any:
    with wheel.open(member) as file, PILImage.open(file) as image:
        return image.convert("RGB")


def _easy_vqa_wheel() -> Path:
    """Return the wheel, downloaded once and checked each time."""
    folder = cache_dir() / "wheels"
    kept = folder / f"{EASY_VQA.replace('==', '-')}.whl"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                os.replace(download_wheel(EASY_VQA, Path(scratch)), kept)
            except OSError as error:
                raise DataError(
                    f"builtin:visual reads the PyPI wheel {EASY_VQA} (3 MB), which pip could not "
                    f"download: {error}."
                ) from error
    if (found := sha256_of(kept)) != EASY_VQA_SHA256:
        raise DataError(
            f"{kept} has SHA-256 {found}; expected {EASY_VQA_SHA256}. It is damaged or not the "
            "published wheel; delete it and try again."
        )
    return kept


def quadrants(draw: random.Random) -> Iterator[tuple[str, Box]]:
    """Yield the quarters of an image in random order, each with a box inside it."""
    half = SIDE // 2
    names = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
    for name in draw.sample(list(names), 4):
        x, y = (half * part for part in names[name])
        left, top = x + draw.randrange(1, 6), y + draw.randrange(1, 6)
        yield name, (left, top, left + draw.randrange(18, 23), top + draw.randrange(18, 23))
