"""``builtin:visual``: eight small tasks about images, in the paper's kinds of instruction."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lcia.data.sample import Message, Sample, Task
from lcia.demo.images import (
    COLOURS,
    SHAPES,
    SIDE,
    WORDS,
    digits,
    easy_vqa,
    quadrants,
    shapes_image,
    side_by_side,
    stored,
    word_image,
)
from lcia.demo.smollm2_dinov2 import DIGITS

TRAIN = 160
TEST = 40
HELD_OUT_DIGITS = 300

ONE_WORD = "Answer the question using a single word or phrase."
NUMBER = "Answer with a number, in digits."
BOX = "Please provide the bounding box coordinate of the region this sentence describes."
READ = "Read the text in the picture, and write it."
INSUFFICIENT = (
    "When the provided information is insufficient, respond with 'Unanswerable'. "
    "Answer the question in one word."
)
UNANSWERABLE = "unanswerable"
MISSING = (
    "what is the name of the owner?",
    "what day was this picture taken?",
    "how much does it cost?",
    "who drew it?",
    "what does it weigh?",
    "where was it made?",
)

Ask = Callable[[random.Random, bool], tuple[Any, str, str]]
"""Draws an image, a question and its answer, for the test if the flag is set."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A task before its samples are drawn.

    Attributes:
        name: of the task.
        instruction: the last line of every prompt; equal for tasks of one kind.
        ask: draws a sample.
        scorer: a name of ``lcia.registry.SCORERS``.
        max_new_tokens: the longest answer.
    """

    name: str
    instruction: str
    ask: Ask
    scorer: str = "ignore_case"
    max_new_tokens: int = 6


def _shape(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    item = draw.choice(_easy(test))
    return item.image, "what shape is in the image?", item.shape


def _colour(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    item = draw.choice(_easy(test))
    return item.image, f"what is the color of the {item.shape}?", item.colour


def _yes_no(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    item = draw.choice(_easy(test))
    is_there = draw.random() < 0.5
    known, choices = draw.choice([(item.shape, SHAPES), (item.colour, tuple(COLOURS))])
    named = known if is_there else draw.choice([other for other in choices if other != known])
    thing = named if named in SHAPES else f"{named} shape"
    return item.image, f"is there a {thing} in the image?", "yes" if is_there else "no"


def _digit(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    image, digit = draw.choice(_digits(test))
    return side_by_side([image]), "which digit is this?", str(digit)


def _sum(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    (left, first), (right, second) = draw.sample(_digits(test), 2)
    return side_by_side([left, right]), "what is the sum of the two digits?", str(first + second)


def _box(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    places = quadrants(draw)
    colours, shapes = draw.sample(list(COLOURS), 2), [draw.choice(SHAPES) for _ in range(2)]
    boxes = [next(places)[1] for _ in range(2)]
    image = shapes_image(list(zip(shapes, colours, boxes, strict=True)), draw=draw)
    corners = ", ".join(f"{corner / SIDE:.1f}" for corner in boxes[0])
    return image, f"the {colours[0]} {shapes[0]}", f"[{corners}]"


def _word(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    word = draw.choice(WORDS)
    return word_image(word, draw=draw), "what is written here?", word


def _unanswerable(draw: random.Random, test: bool) -> tuple[Any, str, str]:
    item = draw.choice(_easy(test))
    if draw.random() < 0.5:
        return item.image, draw.choice(MISSING), UNANSWERABLE
    question, answer = draw.choice(
        [("what shape is in the image?", item.shape), ("what color is it?", item.colour)]
    )
    return item.image, question, answer


# Tasks of one instruction lie apart, so that those between pull a single adapter away from it.
SIGHTS = (
    Sight(name="shapes", instruction=ONE_WORD, ask=_shape),
    Sight(name="digits", instruction=NUMBER, ask=_digit),
    Sight(name="boxes", instruction=BOX, ask=_box, scorer="box_iou", max_new_tokens=24),
    Sight(name="colours", instruction=ONE_WORD, ask=_colour),
    Sight(name="words", instruction=READ, ask=_word),
    Sight(name="sums", instruction=NUMBER, ask=_sum),
    Sight(name="unanswerable", instruction=INSUFFICIENT, ask=_unanswerable),
    Sight(name="yes_no", instruction=ONE_WORD, ask=_yes_no),
)


def visual() -> tuple[Task, ...]:
    """Return the tasks: 160 train and 40 test samples each, no image in both.

    Shapes, colours and yes/no questions are about images of easy-VQA, digits about scikit-learn's
    handwritten ones; the rest is drawn. None of the images was captioned when ``smollm2-dinov2``
    was aligned. Equal on every machine that has the same versions of Pillow and scikit-learn.

    Raises:
        DataError: easy-VQA cannot be downloaded.
        MissingDependencyError: scikit-learn is not installed.
    """
    return tuple(_task(sight) for sight in SIGHTS)


def _task(sight: Sight) -> Task:
    return Task(
        name=sight.name,
        train=_samples(sight, TRAIN, test=False),
        test=_samples(sight, TEST, test=True),
        scorer=sight.scorer,
        instruction="last_line",
        max_new_tokens=sight.max_new_tokens,
    )


def _samples(sight: Sight, count: int, *, test: bool) -> tuple[Sample, ...]:
    split = "test" if test else "train"
    draw = random.Random(f"{sight.name} {split}")

    def sample(i: int) -> Sample:
        drawn, question, answer = sight.ask(draw, test)
        image = stored(drawn, f"{sight.name}-{split}-{i}")
        content = f"{question}\n{sight.instruction}"
        return Sample(
            id=f"{split}-{i}",
            messages=(Message(role="user", content=content, images=(image,)),),
            answers=(answer,),
            instruction=sight.instruction,
        )

    return tuple(map(sample, range(count)))


def _easy(test: bool) -> Sequence[Any]:
    images = easy_vqa("test" if test else "train")
    return images if test else images[: len(images) // 2]


def _digits(test: bool) -> Sequence[tuple[Any, int]]:
    asked = digits()[:-DIGITS]
    return asked[:HELD_OUT_DIGITS] if test else asked[HELD_OUT_DIGITS:]
