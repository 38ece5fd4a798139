"""The short way to use lcia from Python."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcia.config import AssistantConfig, parse_config
from lcia.data import Image, Message, Task, TaskConfig, load_task
from lcia.data.images import image_files
from lcia.errors import ConfigError
from lcia.evaluation.generate import Request, generate
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.grouping import told
from lcia.learner import ContinualLearner, Listener, Outcome, Store


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

    def learn(self, data: str | Path | Task, *, name: str | None = None, **options: Any) -> Outcome:
        """Learn a data file, or a task, as one transaction.

        Args:
            data: a file in a format lcia reads, or a ``Task``.
            name: of the task; default: the file's name.
            **options: other fields of ``TaskConfig``, such as ``test``, ``scorer``.

        Raises:
            DataError: the file has records that cannot be used.
            LciaError: see ``ContinualLearner.learn``.
        """
        if isinstance(data, Task):
            return self._learner.learn(data)
        path = Path(data)
        tree = {"name": name or path.stem, "train": path, **options}
        entry = parse_config(TaskConfig, tree, where="Assistant.learn")
        return self._learner.learn(load_task(entry))

    def answer(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[str | Path] = (),
        max_new_tokens: int = 64,
    ) -> Answer:
        """Answer a prompt, about images if there are any, with the nearest group.

        See ``answer_many``.

        Raises:
            ConfigError: there are images, and the model reads text only.
            DataError: an image cannot be used.
        """
        return self.answer_many([prompt], images=[images], max_new_tokens=max_new_tokens)[0]

    def answer_many(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        images: Sequence[Sequence[str | Path]] = (),
        max_new_tokens: int = 64,
    ) -> list[Answer]:
        """Answer prompts in batches, each with its own group.

        Args:
            prompts: what a user would type; or a conversation, its last turn the user's: what it
                says as a whole chooses the group.
            images: the images of each prompt, files; they stand before its text.
            max_new_tokens: longest answer in tokens.

        Raises:
            ConfigError: there are images, and the model reads text only.
            DataError: an image cannot be used.
        """
        checked = [image_files(files) for files in images or [()] * len(prompts)]
        conversations = [
            _with_images(prompt, shown) for prompt, shown in zip(prompts, checked, strict=True)
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


def _with_images(prompt: str | Sequence[Message], shown: tuple[Image, ...]) -> tuple[Message, ...]:
    """Return a prompt as a conversation, images before the text of its last turn.

    Raises:
        ConfigError: the last turn is not the user's.
    """
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt, images=shown),)
    if not prompt or prompt[-1].role != "user":
        raise ConfigError("prompt: the last turn of a conversation has to be the user's.")
    last = prompt[-1]
    return (*prompt[:-1], replace(last, images=(*shown, *last.images)))
