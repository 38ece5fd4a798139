"""Preferences: a prompt with a chosen and a rejected answer, of which the chosen one is learned."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError, says_nothing
from lcia.data.readers.fields import (
    earlier,
    ends_with_user,
    optional_text,
    text,
    turns,
    with_system,
)
from lcia.data.sample import Message, Sample


class PreferenceReader(Reader):
    """Preferences, {"prompt", "chosen", "rejected"}: the chosen answer is learned.

    ``chosen`` is a text, the assistant's turn in a list, or a whole conversation that ends with it;
    ``prompt`` may then be absent.
    """

    expected: ClassVar[str] = '{"prompt": ..., "chosen": ..., "rejected": ...}'
    fields: ClassVar[frozenset[str]] = frozenset(
        {"prompt", "chosen", "rejected", "instruction", "system", "history"}
    )
    note: ClassVar[str] = (
        "is of preferences: the chosen answers are learned as they are, the rejected ones are not "
        "read."
    )

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``chosen`` and ``rejected``."""
        return "chosen" in record and "rejected" in record

    def sample(self, record: Record) -> Sample:
        """Return the sample of one record."""
        value = record.value
        prompt, chosen = value.get("prompt"), value.get("chosen")
        if isinstance(chosen, list):
            messages = turns(chosen, "chosen", roles=self.roles)
            if messages[-1].role != "assistant":
                raise RecordError("chosen: its last turn is not the assistant's; expected that.")
            *said, last = messages
            before = self._before(prompt, tuple(said), value)
            answer = last.content
        else:
            before = (*earlier(value), *self._prompt(prompt))
            answer = text(chosen, "chosen")
        return Sample(
            id=record.id,
            messages=ends_with_user(before, "chosen" if isinstance(chosen, list) else "prompt"),
            answers=(answer,),
            instruction=optional_text(value.get("instruction"), "instruction"),
        )

    def _prompt(self, value: Any) -> tuple[Message, ...]:
        if isinstance(value, list):
            return turns(value, "prompt", roles=self.roles)
        return (Message(role="user", content=text(value, "prompt")),)

    def _before(
        self, prompt: Any, said: tuple[Message, ...], value: Mapping[str, Any]
    ) -> tuple[Message, ...]:
        """Return the turns before the chosen answer: those in ``chosen``, or the prompt's."""
        if not any(message.role == "user" for message in said):
            return (*earlier(value), *self._prompt(prompt), *said)
        if not says_nothing(prompt):
            asked = self._prompt(prompt)
            if asked[-1] != said[-1] and asked != said[: len(asked)]:
                raise RecordError("prompt is not in the conversation of chosen; expected it there.")
        return with_system(said, value)
