"""Images: found, whole and of a size that can be opened, before anything is trained."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcia.data.sample import Image, Message, Sample, Task
from lcia.errors import DataError
from lcia.files import content_of

SHOWN = 20


def below(folder: Path) -> Callable[[Sample], Sample]:
    """Return a function that makes the images' relative paths start from ``folder``."""
    root = folder.absolute()
    return lambda sample: _each_image(
        sample, lambda image: replace(image, path=str(root / image.path))
    )


def check_images(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Open every image of the tasks once, and return the tasks with the files' checksums.

    Raises:
        DataError: images are missing, damaged or larger than PIL's limit for decompression
            bombs; one list for all tasks, every file once.
    """
    wanted: dict[str, str] = {}
    for task in tasks:
        for sample in (*task.train, *task.test):
            for image in sample.images:
                wanted.setdefault(image.path, f"task '{task.name}', sample {sample.id}")
    sums, problems = inspect(wanted)
    if problems:
        lines = [f"{path}: {why} ({wanted[path]})" for path, why in problems.items()]
        shown = f"the first {SHOWN}" if len(lines) > SHOWN else "all"
        head = f"{len(lines)} of {len(wanted)} images cannot be used; {shown}:"
        raise DataError("\n".join((head, *lines[:SHOWN])))
    if not wanted:
        return tuple(tasks)

    def summed(sample: Sample) -> Sample:
        return _each_image(sample, lambda image: replace(image, sha256=sums[image.path]))

    return tuple(
        replace(task, train=tuple(map(summed, task.train)), test=tuple(map(summed, task.test)))
        for task in tasks
    )


def inspect(paths: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read images, several at once.

    Returns:
        Path to SHA-256 of the good ones, and path to what is wrong with the others.
    """
    paths = list(paths)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of large images: those are problems here
        results = dict(zip(paths, pool.map(_inspect, paths), strict=True))
    good = {path: found for path, (found, _) in results.items() if found is not None}
    bad = {path: problem for path, (_, problem) in results.items() if problem is not None}
    return good, bad


def image_files(paths: Iterable[str | Path]) -> tuple[Image, ...]:
    """Return image files as the images of a message, checked.

    Raises:
        DataError: one is missing, damaged or too large.
    """
    names = [str(path) for path in paths]
    sums, problems = inspect(names)
    if problems:
        raise DataError("\n".join(f"{path}: {why}." for path, why in problems.items()))
    return tuple(Image(path=name, sha256=sums[name]) for name in names)


def open_image(path: str | Path) -> Any:
    """Return an image as an upright RGB ``PIL.Image``.

    Raises:
        DataError: it is gone or damaged since it was checked.
    """
    from PIL import Image as PILImage
    from PIL import ImageOps

    try:
        with PILImage.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an image any more: {error}.") from error


def _inspect(path: str) -> tuple[str | None, str | None]:
    """Return the checksum of an image, or what is wrong with it."""
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    try:
        content = content_of(Path(path))
    except FileNotFoundError:
        return None, "no such file"
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    limit = PILImage.MAX_IMAGE_PIXELS
    try:
        with PILImage.open(io.BytesIO(content)) as image:
            width, height = image.size
            if limit is not None and width * height > limit:
                return None, f"is {width} x {height}; expected at most {limit:,} pixels"
            image.draft(None, (64, 64))  # JPEG: reads all of it, computes little
            image.load()
    except PILImage.DecompressionBombError:
        return None, f"is larger than {2 * (limit or 0):,} pixels; expected at most {limit:,}"
    except UnidentifiedImageError:
        return None, "is no image of a kind that lcia reads"
    except (OSError, ValueError, SyntaxError) as error:
        return None, f"is no whole image: {str(error).rstrip('.')}"
    return hashlib.sha256(content).hexdigest(), None


def _each_image(sample: Sample, change: Callable[[Image], Image]) -> Sample:
    if not sample.images:
        return sample

    def changed(message: Message) -> Message:
        return replace(message, images=tuple(map(change, message.images)))

    return replace(sample, messages=tuple(map(changed, sample.messages)))
