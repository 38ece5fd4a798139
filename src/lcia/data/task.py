"""A task: what is learned in one go, and how it is scored."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcia.data.sample import Message, Sample
from lcia.errors import ConfigError, DataError

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
