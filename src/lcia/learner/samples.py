"""Samples as JSON Lines: held-out ones with their task, remembered ones with their group."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lcia.data.sample import Message, Sample
from lcia.learner.files import read_jsonl, write_jsonl


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples, one JSON line each."""
    write_jsonl(path, map(_to_json, samples))


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read what ``write_samples`` wrote.

    Raises:
        StoreError: the file is missing or damaged.
    """
    return tuple(map(_from_json, read_jsonl(path)))


def _to_json(sample: Sample) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in sample.messages]
    return {
        "id": sample.id,
        "messages": turns,
        "answers": list(sample.answers),
        "instruction": sample.instruction,
    }


def _from_json(record: Mapping[str, Any]) -> Sample:
    return Sample(
        id=record["id"],
        messages=tuple(Message(**turn) for turn in record["messages"]),
        answers=tuple(record["answers"]),
        instruction=record["instruction"],
    )
