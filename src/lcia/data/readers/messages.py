"""Chat messages: the conversation, its last assistant turn the answer."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError
from lcia.data.readers.fields import (
    ends_with_user,
    is_learned,
    optional_text,
    speaker,
    texts,
    turns,
    with_answers,
    with_system,
)
from lcia.data.sample import Sample


class MessagesReader(Reader):
    """Chat messages, {"messages": [{"role", "content"}, ...]}; optional "instruction", "answers".

    ``answers`` lists further acceptable answers; with it the conversation may end with the
    user's turn. An answer with "weight": 0 is not learned: the one before it is, without what
    follows. "system" may stand beside the messages, if no system turn is among them.

    With ``turns`` set to ``all``, every answer is learned, each with the turns before it.
    """

    expected: ClassVar[str] = '{"messages": [{"role": ..., "content": ...}, ...]}'
    fields: ClassVar[frozenset[str]] = frozenset({"messages", "answers", "instruction", "system"})

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``messages``, and no answers to choose from."""
        return "messages" in record and not {"chosen", "rejected"} <= record.keys()

    def expand(self, record: Record) -> Iterator[Record]:
        """Yield the record; where all answers are learned, one for each, up to it."""
        said = record.value.get("messages") if isinstance(record.value, Mapping) else None
        if self.turns != "all" or not isinstance(said, list):
            yield record
            return
        answers = [i for i, turn in enumerate(said) if speaker(turn, self.roles) == "assistant"]
        answers = [i for i in answers if is_learned(said[i], f"messages[{i}]")]
        if len(answers) < 2:
            yield record
            return
        for number, i in enumerate(answers, start=1):
            rest = {k: v for k, v in record.value.items() if k != "answers" or i == answers[-1]}
            own = {"id": f"{record.id}-{number}", "messages": said[: i + 1]}
            yield replace(record, value={**rest, **own})

    def sample(self, record: Record) -> Sample:
        """Return the sample; the last assistant turn is the answer trained on."""
        value = record.value
        messages = with_system(
            turns(self._learned(value.get("messages")), "messages", roles=self.roles), value
        )
        answers = texts(value["answers"], "answers") if value.get("answers") is not None else ()
        if messages[-1].role == "assistant":
            answers = with_answers((messages[-1].content,), answers)
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
            conversation=record.where if self.turns == "all" else None,
        )

    def _learned(self, said: Any) -> Any:
        """Return the turns up to the last answer that is to be learned."""
        if not isinstance(said, list):
            return said
        answers = [i for i, turn in enumerate(said) if speaker(turn, self.roles) == "assistant"]
        learned = [i for i in answers if is_learned(said[i], f"messages[{i}]")]
        if answers and not learned:
            raise RecordError("messages: no answer is to be learned. Leave the record out.")
        if learned != answers and learned[-1] != answers[-1]:
            return said[: learned[-1] + 1]
        return said
