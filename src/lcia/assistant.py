"""The short way to use lcia from Python."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from lcia.config import AssistantConfig, parse_config
from lcia.data import Image, Message, Task, TaskConfig, load_task
from lcia.data.images import image_files
from lcia.data.readers.base import RecordError
from lcia.data.readers.fields import text, turns
from lcia.errors import ConfigError, DataError
from lcia.evaluation.generate import Request, generate
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.files import json_bytes
from lcia.grouping import told
from lcia.learner import ContinualLearner, Listener, Outcome, Store

Prompt: TypeAlias = str | Sequence[Message | Mapping[str, Any]]
"""What a user would type; or a conversation, its last turn the user's: ``Message``, or dicts with
``role`` and ``content``."""

Records: TypeAlias = Iterable[Mapping[str, Any]]
"""Records of any shape that lcia reads from files: a list of dicts, or a ``datasets.Dataset``."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the assistant said, and why this adapter said it.

    Attributes:
        text: the answer.
        group: the group that answered; None for the base model.
        similarity: of the prompt's instruction to the nearest group, in [0, 1].
        runner_up: the second nearest group.
        reason: why this group, as in ``RouteDecision``.
    """

    text: str
    group: str | None
    similarity: float
    runner_up: str | None
    reason: str


class Assistant:
    """An assistant in a directory: learns tasks, answers prompts.

    Use ``Assistant.create`` or ``Assistant.open``.
    """

    def __init__(self, learner: ContinualLearner) -> None:
        self._learner = learner

    @classmethod
    def create(
        cls, root: str | Path, *, model: str, listener: Listener | None = None, **settings: Any
    ) -> "Assistant":
        """Make an empty assistant.

        Args:
            root: a new or empty folder.
            model: an embedded name (``smollm2-135m``), a hub id or a local path.
            listener: told every event of learning.
            **settings: other fields of ``AssistantConfig``.

        Raises:
            ConfigError: an unknown setting.
            ModelError: the model does not exist.
            StoreError: ``root`` is not empty.
        """
        tree = {"model": model, **settings}
        config = parse_config(AssistantConfig, tree, where="Assistant.create")
        return cls(ContinualLearner.create(root, config, listener=listener))

    @classmethod
    def open(cls, root: str | Path, *, listener: Listener | None = None) -> "Assistant":
        """Open an existing assistant.

        Raises:
            StoreError: there is none at ``root``.
        """
        return cls(ContinualLearner(Store.open(root), listener=listener))

    @property
    def store(self) -> Store:
        """The directory, with its versions."""
        return self._learner.store

    @property
    def matrix(self) -> AccuracyMatrix:
        """The scores so far: R[t, i], in percent."""
        return self.store.current.matrix()

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every metric of the current version; None where it is unavailable."""
        return summarise(self.matrix)

    def versions(self) -> list[int]:
        """Return the numbers of the versions that can be gone back to."""
        return self.store.versions()

    def rollback(self, version: int) -> None:
        """Make an earlier version the current one; nothing is deleted.

        Raises:
            StoreError: no such version, or another process is changing the assistant.
        """
        self.store.roll_back(version)

    def learn(
        self, data: str | Path | Task | Records, *, name: str | None = None, **options: Any
    ) -> Outcome:
        """Learn a data file, records or a task, as one transaction.

        Args:
            data: a file in a format lcia reads, its records, or a ``Task``.
            name: of the task; default: the file's name.
            **options: other fields of ``TaskConfig``, such as ``test``, a file or records, or
                ``scorer``.

        Raises:
            ConfigError: an option that is none, or records without a name.
            DataError: there are records that cannot be used.
            LciaError: see ``ContinualLearner.learn``.
        """
        if isinstance(data, Task):
            return self._learner.learn(data)
        with ExitStack() as stack:
            train = stack.enter_context(_as_file(data, "train.jsonl"))
            if options.get("test") is not None:
                options["test"] = stack.enter_context(_as_file(options["test"], "test.jsonl"))
            if name is None and not isinstance(data, (str, Path)):
                raise ConfigError("Assistant.learn: records have no name. Pass name='...'.")
            tree = {"name": name or train.stem, "train": train, **options}
            task = load_task(parse_config(TaskConfig, tree, where="Assistant.learn"))
        return self._learner.learn(task)

    def answer(
        self,
        prompt: Prompt,
        *,
        images: Sequence[str | Path] = (),
        max_new_tokens: int = 64,
    ) -> Answer:
        """Answer a prompt, about images if there are any, with the nearest group.

        See ``answer_many``.

        Raises:
            ConfigError: what is no prompt; or there are images, and the model reads text only.
            DataError: an image cannot be used.
        """
        return self.answer_many([prompt], images=[images], max_new_tokens=max_new_tokens)[0]

    def answer_many(
        self,
        prompts: Sequence[Prompt],
        *,
        images: Sequence[Sequence[str | Path]] = (),
        max_new_tokens: int = 64,
    ) -> list[Answer]:
        """Answer prompts in batches, each with its own group.

        Args:
            prompts: what users would type, or conversations, ``Message`` or dicts with ``role`` and
                ``content``, the last turn the user's: what one says as a whole chooses the group.
            images: the images of each prompt, files; they stand before its text.
            max_new_tokens: longest answer in tokens.

        Raises:
            ConfigError: what is no prompt; or there are images, and the model reads text only.
            DataError: an image cannot be used.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected a number from 1 up.")
        checked = [image_files(files) for files in images or [()] * len(prompts)]
        conversations = [
            _conversation(prompt, shown) for prompt, shown in zip(prompts, checked, strict=True)
        ]
        version = self.store.current
        decisions = self._learner.router(version).route_many(map(told, conversations))
        requests = [
            Request(
                messages=messages,
                adapter=version.adapters[decision.group] if decision.group else None,
                max_new_tokens=max_new_tokens,
            )
            for messages, decision in zip(conversations, decisions, strict=True)
        ]
        batch_size = self._learner.config.generation.batch_size
        texts = generate(self._learner.host, requests, batch_size=batch_size)
        return [
            Answer(
                text=text,
                group=decision.group,
                similarity=decision.similarity,
                runner_up=decision.runner_up,
                reason=decision.reason,
            )
            for text, decision in zip(texts, decisions, strict=True)
        ]


def _conversation(prompt: Prompt, shown: tuple[Image, ...]) -> tuple[Message, ...]:
    """Return a prompt as a conversation, images before the text of its last turn.

    Raises:
        ConfigError: it is none, or the last turn is not the user's.
    """
    try:
        if isinstance(prompt, str):
            content = text(prompt, "prompt") if prompt.strip() else prompt
            return (Message(role="user", content=content, images=shown),)
        said = _messages(prompt)
    except RecordError as error:
        raise ConfigError(str(error)) from error
    if said[-1].role != "user":
        raise ConfigError("prompt: the last turn of a conversation has to be the user's.")
    last = said[-1]
    return (*said[:-1], replace(last, images=(*shown, *last.images)))


def _messages(turned: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    if not isinstance(turned, Sequence):
        return turns(turned, "prompt", roles={})  # which says what it is
    messages = tuple(turn for turn in turned if isinstance(turn, Message))
    if messages and len(messages) == len(turned):
        return messages
    return turns(list(turned), "prompt", roles={})


@contextmanager
def _as_file(data: str | Path | Records, name: str) -> Iterator[Path]:
    """Give a file, or records as one: the readers check files."""
    if isinstance(data, (str, Path)):
        yield Path(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        with path.open("wb") as file:
            for number, record in enumerate(data, start=1):
                try:
                    file.write(json_bytes(dict(record)) + b"\n")
                except (TypeError, ValueError) as error:
                    raise DataError(f"{name}: record {number}: is no JSON: {error}.") from error
        try:
            yield path
        except DataError as error:  # the folder is gone when somebody reads this
            raise DataError(str(error).replace(f"{folder}{os.sep}", "")) from error
