"""Prompt and completion, as trl and most fine-tuning services take them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError
from lcia.data.readers.fields import (
    earlier,
    ends_with_user,
    optional_text,
    text,
    texts,
    turns,
    with_answers,
)
from lcia.data.sample import Message, Sample


class PromptCompletionReader(Reader):
    """Prompt and completion, texts or message lists; optional "answers" and "instruction".

    Beside a prompt that is a text, "system" and "history" may stand, as in Alpaca's form.

    ``completion`` may also be a list of acceptable texts, and be called ``answer``; ``answers`` may
    stand beside it or alone (test files). The first answer is the one trained on.
    """

    expected: ClassVar[str] = (
        '{"prompt": ..., "completion": ...} or {"prompt": ..., "answers": [...]}'
    )
    fields: ClassVar[frozenset[str]] = frozenset(
        {"prompt", "completion", "answer", "answers", "instruction", "system", "history"}
    )

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``prompt`` and ``completion``, ``answer`` or ``answers``."""
        return "prompt" in record and not record.keys().isdisjoint(
            ("completion", "answer", "answers")
        )

    def sample(self, record: Record) -> Sample:
        """Return the sample of one record."""
        value = record.value
        return Sample(
            id=record.id,
            messages=(*earlier(value), *self._prompt(value.get("prompt"))),
            answers=self._answers(value),
            instruction=optional_text(value.get("instruction"), "instruction"),
        )

    def _prompt(self, value: Any) -> tuple[Message, ...]:
        if isinstance(value, list):
            return ends_with_user(turns(value, "prompt", roles=self.roles), "prompt")
        return (Message(role="user", content=text(value, "prompt")),)

    def _answers(self, value: Mapping[str, Any]) -> tuple[str, ...]:
        completion, answers = value.get("completion"), value.get("answers")
        if value.get("answer") is not None:
            if completion is not None:
                raise RecordError("completion and answer are both there; expected one of them.")
            completion = value["answer"]
        given = texts(answers, "answers") if answers is not None else ()
        if completion is not None or not given:
            given = with_answers(self._completion(completion), given)
        return given

    def _completion(self, value: Any) -> tuple[str, ...]:
        if not (isinstance(value, list) and any(isinstance(item, Mapping) for item in value)):
            return texts(value, "completion")
        messages = turns(value, "completion", roles=self.roles)
        if len(messages) != 1 or messages[0].role != "assistant":
            found = ", ".join(message.role for message in messages)
            raise RecordError(f"completion has the turns {found}; expected one of the assistant.")
        return (messages[0].content,)
