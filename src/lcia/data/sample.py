"""The in-memory forms of data: tasks, their training and test samples, and turns."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcia.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in a turn.

    Attributes:
        path: the file, absolute once a task is loaded.
        sha256: of the file's bytes, hexadecimal; empty until it was checked.
        at: how many characters of the turn's text stand before it.
    """

    path: str
    sha256: str = ""
    at: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: the text of the turn.
        images: its images, in order; most models want them before the text.
    """

    role: str
    content: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with its acceptable answers.

    Attributes:
        id: unique within its file; line or record number where the data give none.
        messages: the conversation up to the answer; the last turn is the user's.
        answers: every acceptable answer, at least one; the first is the one trained on.
        instruction: the part of the prompt that says what to do, where the data name it.
        conversation: what samples of one conversation share, where it holds several; they are
            trained on or held out together.
    """

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    instruction: str | None = None
    conversation: str | None = field(default=None, compare=False)

    @property
    def prompt(self) -> str:
        """The text of the last user turn: what a user would type."""
        return self.messages[-1].content

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all turns, in order."""
        return tuple(image for message in self.messages for image in message.images)


NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_name(name: str) -> str:
    """Return ``name`` if it can name a task and the folder of its files.

    Raises:
        ConfigError: other characters than letters, digits, '.', '_', '-', or a '.' first.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"task name '{name}': expected letters, digits, '.', '_' or '-', not starting with '.'."
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Task:
    """One instruction data set with its held-out samples.

    Attributes:
        name: unique within a stream or an assistant; also a folder's name.
        train: what is learned, at least one sample.
        test: what is scored and kept to measure forgetting, at least one sample.
        scorer: a name of ``lcia.registry.SCORERS``.
        instruction: how ``lcia.grouping`` finds the instruction of a sample.
        max_new_tokens: the longest answer to generate.
        corrects: whether ``train`` are corrections of answers the assistant gave: the group that
            answers them learns all of them, until they are answered as corrected.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    scorer: str = "exact_match"
    instruction: str | Mapping[str, Any] = "infer"
    max_new_tokens: int = 32
    corrects: bool = False

    def __post_init__(self) -> None:
        """Check the name and that there is something to learn and to score.

        Raises:
            ConfigError: the name cannot be used.
            DataError: no sample to train or to test on.
        """
        check_name(self.name)
        for split, samples in (("train", self.train), ("test", self.test)):
            if not samples:
                raise DataError(f"task '{self.name}' has no {split} sample; expected at least one.")

    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of all that changes what is learned or scored.

        The name and the samples' ids are left out: the same content under other ids is the same.
        """
        content = {
            "train": [_content(sample) for sample in self.train],
            "test": [_content(sample) for sample in self.test],
            "scorer": self.scorer,
            "instruction": self.instruction,
            "max_new_tokens": self.max_new_tokens,
            **({"corrects": True} if self.corrects else {}),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
        return hashlib.sha256(text.encode()).hexdigest()


def _content(sample: Sample) -> list[Any]:
    return [[_turn(message) for message in sample.messages], sample.answers, sample.instruction]


def _turn(message: Message) -> list[Any]:
    images = [[image.sha256 or image.path, image.at] for image in message.images]
    return [message.role, message.content, *([images] if images else [])]
