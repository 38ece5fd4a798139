"""What is in a file, and what is wrong with it, for ``lcia data check``."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lcia.data.images import inspect
from lcia.data.reading import read_all


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The spread of the lengths of texts, in characters; all 0 for no text."""

    shortest: int = 0
    median: float = 0
    longest: int = 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Lengths":
        """Measure the texts."""
        lengths = [len(text) for text in texts]
        if not lengths:
            return cls()
        return cls(shortest=min(lengths), median=median(lengths), longest=max(lengths))


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The outcome of ``check``.

    Attributes:
        path: the file, as given.
        format: the reader that fits it.
        samples: the number of usable records.
        bad: one line per other record, and per image that cannot be used: where, what was
            found, what was expected.
        turns: the greatest number of turns before an answer.
        prompt_chars: the lengths of the last user turns.
        answer_chars: the lengths of the answers trained on.
        answers: the number of acceptable answers over all samples.
        instructions: the number of different instructions that the data name.
        duplicate_prompts: samples whose whole conversation an earlier sample has.
        conflicting_prompts: those of them whose first answer differs from the earlier one's.
        unread: field to the number of records in which it says something that nobody reads.
        note: what one should know of how the format is read; None: nothing.
    """

    path: str
    format: str
    samples: int
    bad: tuple[str, ...]
    turns: int
    prompt_chars: Lengths
    answer_chars: Lengths
    answers: int
    instructions: int
    duplicate_prompts: int
    conflicting_prompts: int
    unread: Mapping[str, int]
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every record of the file can be used."""
        return not self.bad


def check(path: str | Path, **options: Any) -> DataReport:
    """Read a file and describe it; bad records, empty prompts among them, do not raise.

    Args:
        path: a file, a folder of data files, or a hub id.
        **options: those of ``read_all``.

    Raises:
        DataError: the file cannot be read, or no reader fits.
        ConfigError: see ``read_all``.
    """
    reading = read_all(path, **options)
    samples = reading.samples
    images = {image.path: None for sample in samples for image in sample.images}
    _, damaged = inspect(images)
    prompts = Counter(sample.messages for sample in samples)
    answered = Counter({(sample.messages, sample.answers[0]): 1 for sample in samples})
    return DataReport(
        path=str(path),
        format=reading.format,
        samples=len(samples),
        bad=(*reading.messages(), *(f"{path}: {why}" for path, why in damaged.items())),
        turns=max((len(sample.messages) for sample in samples), default=0),
        prompt_chars=Lengths.of(sample.prompt for sample in samples),
        answer_chars=Lengths.of(sample.answers[0] for sample in samples),
        answers=sum(len(sample.answers) for sample in samples),
        instructions=len({sample.instruction for sample in samples} - {None}),
        duplicate_prompts=len(samples) - len(prompts),
        conflicting_prompts=len(answered) - len(prompts),
        unread=reading.unread,
        note=reading.note,
    )
