"""Tasks about small images, drawn on the spot."""

from pathlib import Path

from PIL import Image as PILImage

from lcia.data import Image, Message, Sample, Task
from lcia.data.images import check_images

SIZES = ((60, 40), (40, 60), (50, 50))


def image_task(
    folder: Path, name: str, *, instruction: str, answers: dict[str, str], train: int = 8
) -> Task:
    """Name the colour of an image; every third sample is a text without an image."""
    colours = list(answers)
    (folder / name).mkdir(parents=True, exist_ok=True)

    def sample(i: int) -> Sample:
        colour = colours[i % len(colours)]
        path = folder / name / f"{i}.png"
        PILImage.new("RGB", SIZES[i % 3], colour).save(path)
        images = () if i % 3 == 2 else (Image(path=str(path)),)
        content = f"{'What is this' if images else f'What is {colour}'}, {i}?\n{instruction}"
        return Sample(
            id=str(i),
            messages=(Message(role="user", content=content, images=images),),
            answers=(answers[colour],),
        )

    task = Task(
        name=name,
        train=tuple(map(sample, range(train))),
        test=tuple(map(sample, range(100, 106))),
        instruction="last_line",
        max_new_tokens=4,
    )
    return check_images([task])[0]
