"""Alpaca: instruction, input and output."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record
from lcia.data.readers.fields import earlier, text, texts
from lcia.data.sample import Message, Sample


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
