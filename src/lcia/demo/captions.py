"""Pictures with captions: what a projector is aligned on before it learns any task."""

import random

from lcia.data.sample import Message, Sample
from lcia.demo.pictures import (
    COLOURS,
    SHAPES,
    WORDS,
    digits,
    easy_vqa,
    quadrants,
    shapes_picture,
    side_by_side,
    stored,
    word_picture,
)

INSTRUCTION = "Describe the picture."
DIGITS = 600
"""The last of them are described here; ``builtin:visual`` asks about the others."""


def captions(*, each: int) -> tuple[Sample, ...]:
    """Return captioned pictures of five kinds, shuffled.

    Args:
        each: pictures of a kind: one shape, two shapes, a digit, two digits, a word.

    Raises:
        DataError: easy-VQA cannot be downloaded.
        MissingDependencyError: scikit-learn is not installed.
    """
    draw = random.Random(0)
    written = digits()[-DIGITS:]
    ones = [(item.picture, f"a {item.colour} {item.shape}") for item in easy_vqa("train")[-each:]]
    described = [*ones]
    for _ in range(each):
        described.append(_two_shapes(draw))
        picture, digit = draw.choice(written)
        described.append((side_by_side([picture]), f"the digit {digit}"))
        (left, first), (right, second) = draw.sample(written, 2)
        described.append((side_by_side([left, right]), f"the digits {first} and {second}"))
        word = draw.choice(WORDS)
        described.append((word_picture(word, draw=draw), f"the word {word}"))
    draw.shuffle(described)
    return tuple(
        Sample(
            id=str(i),
            messages=(
                Message(
                    role="user", content=INSTRUCTION, images=(stored(picture, f"caption-{i}"),)
                ),
            ),
            answers=(caption,),
        )
        for i, (picture, caption) in enumerate(described)
    )


def _two_shapes(draw: random.Random) -> tuple[object, str]:
    places = quadrants(draw)
    shapes, said = [], []
    for colour in draw.sample(list(COLOURS), 2):
        (where, box), shape = next(places), draw.choice(SHAPES)
        shapes.append((shape, colour, box))
        said.append(f"a {colour} {shape} at the {where}")
    return shapes_picture(shapes, draw=draw), " and ".join(said)
