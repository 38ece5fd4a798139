"""Images with captions: what a projector is aligned on before it learns any task."""

import random

from lcia.data.sample import Message, Sample
from lcia.demo.images import (
    COLOURS,
    SHAPES,
    WORDS,
    digits,
    easy_vqa,
    quadrants,
    shapes_image,
    side_by_side,
    stored,
    word_image,
)

INSTRUCTION = "Describe the picture."
DIGITS = 600
"""The last of them are described here; ``builtin:visual`` asks about the others."""


def captions(*, each: int) -> tuple[Sample, ...]:
    """Return captioned images of five kinds, shuffled.

    Args:
        each: images of a kind: one shape, two shapes, a digit, two digits, a word.

    Raises:
        DataError: easy-VQA cannot be downloaded.
        MissingDependencyError: scikit-learn is not installed.
    """
    draw = random.Random(0)
    written = digits()[-DIGITS:]
    ones = [(item.image, f"a {item.colour} {item.shape}") for item in easy_vqa("train")[-each:]]
    described = [*ones]
    for _ in range(each):
        described.append(_two_shapes(draw))
        image, digit = draw.choice(written)
        described.append((side_by_side([image]), f"the digit {digit}"))
        (left, first), (right, second) = draw.sample(written, 2)
        described.append((side_by_side([left, right]), f"the digits {first} and {second}"))
        word = draw.choice(WORDS)
        described.append((word_image(word, draw=draw), f"the word {word}"))
    draw.shuffle(described)
    return tuple(
        Sample(
            id=str(i),
            messages=(
                Message(role="user", content=INSTRUCTION, images=(stored(image, f"caption-{i}"),)),
            ),
            answers=(caption,),
        )
        for i, (image, caption) in enumerate(described)
    )


def _two_shapes(draw: random.Random) -> tuple[object, str]:
    places = quadrants(draw)
    shapes, said = [], []
    for colour in draw.sample(list(COLOURS), 2):
        (where, box), shape = next(places), draw.choice(SHAPES)
        shapes.append((shape, colour, box))
        said.append(f"a {colour} {shape} at the {where}")
    return shapes_image(shapes, draw=draw), " and ".join(said)
