"""Samples as JSON Lines: held-out ones with their task, kept ones with their group."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.data.images import below
from lcia.data.sample import Image, Message, Sample
from lcia.errors import StoreError
from lcia.files import read_jsonl, write_jsonl

REMEMBERED, VALIDATION = "memory.jsonl", "validation.jsonl"
"""Beside an adapter: samples its method trains on again, and those it chooses by."""

Kept = list[tuple[Sample, str | None]]
"""Samples, each with its task; None where an earlier lcia did not write it."""

_COPY = re.compile(r"images/[^/\\]*[^/\\.][^/\\]*")


def write_samples(
    path: Path, samples: Iterable[Sample], *, tasks: Sequence[str | None] = ()
) -> None:
    """Write samples, one JSON line each, with copies of their images in ``images/`` beside.

    Args:
        path: the file.
        samples: what to write.
        tasks: the task of each sample, where they are of several.
    """
    samples = list(samples)
    for image in {image for sample in samples for image in sample.images}:
        copy = path.with_name("images") / _name(image)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(image.path, copy)
    of = [{"task": task} for task in tasks] or [{}] * len(samples)
    records = (_to_json(sample) | task for sample, task in zip(samples, of, strict=True))
    write_jsonl(path, records)


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read what ``write_samples`` wrote.

    Raises:
        StoreError: the file is missing or damaged.
    """
    located = below(path.parent)
    try:
        return tuple(located(_from_json(record)) for record in read_jsonl(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: expected samples that lcia wrote: {error!r}.") from error


def read_tasks(path: Path) -> list[str | None]:
    """Return the task of each sample in a file; None where an earlier lcia did not write it."""
    return [record.get("task") for record in read_jsonl(path)]


def kept_with(folder: Path, name: str) -> Kept:
    """Return the samples that stay with an adapter in the file ``name``; none if there are none."""
    path = folder / name
    return list(zip(read_samples(path), read_tasks(path), strict=True)) if path.is_file() else []


def keep_with(folder: Path, name: str, kept: Kept) -> None:
    """Write what ``kept_with`` reads; no file if there is nothing to keep."""
    if kept:
        samples, tasks = zip(*kept, strict=True)
        write_samples(folder / name, samples, tasks=tasks)


def _to_json(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id,
        "messages": [_turn_to_json(message) for message in sample.messages],
        "answers": list(sample.answers),
        "instruction": sample.instruction,
    }


def _turn_to_json(message: Message) -> dict[str, Any]:
    turn = {"role": message.role, "content": message.content}
    if not message.images:
        return turn
    images = [
        {"path": f"images/{_name(image)}", "sha256": image.sha256, "at": image.at}
        for image in message.images
    ]
    return {**turn, "images": images}


def _name(image: Image) -> str:
    """Return the name of the copy: by content, so that no image is kept twice."""
    return f"{image.sha256}{Path(image.path).suffix.lower()}"


def _from_json(record: Mapping[str, Any]) -> Sample:
    return Sample(
        id=record["id"],
        messages=tuple(_turn_from_json(turn) for turn in record["messages"]),
        answers=tuple(record["answers"]),
        instruction=record["instruction"],
    )


def _turn_from_json(turn: Mapping[str, Any]) -> Message:
    images = tuple(Image(**image) for image in turn.get("images", ()))
    for image in images:
        if not _COPY.fullmatch(image.path):
            raise StoreError(
                f"a sample's image is {image.path!r}; expected a copy in images/. The store was "
                "not written by lcia."
            )
    return Message(role=turn["role"], content=turn["content"], images=images)
