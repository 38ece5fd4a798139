"""One prompt and its answer: as trl and most fine-tuning services take them, or as Alpaca has.

Of a preference, the answer that was chosen is one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError, says_nothing
from lcia.data.readers.fields import (
    earlier,
    ends_with_user,
    optional_text,
    text,
    texts,
    turns,
    with_answers,
    with_system,
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


class AlpacaReader(Reader):
    """Alpaca, {"instruction", "input", "output"}: instruction and input become the prompt.

    A blank line stands between them; the instruction is also kept by itself. Optional: "system", a
    text; "history", a list of earlier [prompt, answer] pairs.
    """

    expected: ClassVar[str] = '{"instruction": ..., "input": ..., "output": ...}'
    fields: ClassVar[frozenset[str]] = frozenset(
        {"instruction", "input", "output", "system", "history"}
    )

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``instruction`` and ``output``."""
        return "instruction" in record and "output" in record

    def sample(self, record: Record) -> Sample:
        """Return the sample of one record; ``input`` may be absent or empty."""
        value = record.value
        instruction = text(value.get("instruction"), "instruction")
        given = value.get("input")
        has_input = given is not None and given != ""
        prompt = f"{instruction}\n\n{text(given, 'input')}" if has_input else instruction
        return Sample(
            id=record.id,
            messages=(*earlier(value), Message(role="user", content=prompt)),
            answers=texts(value.get("output"), "output"),
            instruction=instruction,
        )


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
