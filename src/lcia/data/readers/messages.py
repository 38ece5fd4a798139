"""Chat messages: the conversation, its last assistant turn the answer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError
from lcia.data.readers.fields import ends_with_user, optional_text, texts, turns
from lcia.data.sample import Sample


class MessagesReader(Reader):
    """Chat messages, {"messages": [{"role", "content"}, ...]}; optional "instruction", "answers".

    ``answers`` lists further acceptable answers; with it the conversation may end with the
    user's turn.
    """

    expected: ClassVar[str] = '{"messages": [{"role": ..., "content": ...}, ...]}'

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``messages``."""
        return "messages" in record

    def sample(self, record: Record) -> Sample:
        """Return the sample; the last assistant turn is the answer trained on."""
        value = record.value
        messages = turns(value.get("messages"), "messages", roles=self.roles)
        answers = texts(value["answers"], "answers") if value.get("answers") is not None else ()
        if messages[-1].role == "assistant":
            answers = tuple(dict.fromkeys((messages[-1].content, *answers)))
            messages = messages[:-1]
        elif not answers:
            last = len(messages) - 1
            raise RecordError(
                f"messages[{last}].role is '{messages[last].role}'; expected the last turn to be "
                "the assistant's answer, or 'answers'."
            )
        return Sample(
            id=record.id,
            messages=ends_with_user(messages, "messages"),
            answers=answers,
            instruction=optional_text(value.get("instruction"), "instruction"),
        )
