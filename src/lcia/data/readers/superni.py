"""Super-NaturalInstructions: one JSON object a task."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError, found
from lcia.data.readers.fields import text, texts
from lcia.data.sample import Message, Sample


class SuperNIReader(Reader):
    """Super-NaturalInstructions task, {"Definition", "Instances": [{"input", "output"}, ...]}.

    The prompt is the definition and the input, a blank line between; all outputs are acceptable.
    Source: Wang et al. 2022, arXiv:2204.07705.
    """

    expected: ClassVar[str] = '{"Definition": ..., "Instances": [{"input": ..., "output": [...]}]}'
    fields: ClassVar[frozenset[str]] = frozenset({"Definition", "input", "output"})

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the object has ``Definition`` and ``Instances``."""
        return "Definition" in record and "Instances" in record

    def expand(self, record: Record) -> Iterator[Record]:
        """Yield the instances, each with the definition of the task."""
        if not isinstance(record.value, Mapping):
            raise RecordError(f"found {found(record.value)}; expected {self.expected}.")
        definition = "\n".join(texts(record.value.get("Definition"), "Definition")).strip()
        instances = record.value.get("Instances")
        if not isinstance(instances, list) or not instances:
            raise RecordError(
                f"Instances is {found(instances)}; expected a list of input and output."
            )
        for i, instance in enumerate(instances):
            whole = isinstance(instance, Mapping)
            yield Record(
                where=f": Instances[{i}]",
                number=i + 1,
                value={**instance, "Definition": definition} if whole else instance,
            )

    def sample(self, record: Record) -> Sample:
        """Return the sample of one instance."""
        definition = record.value["Definition"]
        prompt = f"{definition}\n\n{text(record.value.get('input'), 'input')}"
        return Sample(
            id=record.id,
            messages=(Message(role="user", content=prompt),),
            # Repeated references are the collection's noise, not votes.
            answers=tuple(dict.fromkeys(texts(record.value.get("output"), "output"))),
            instruction=definition,
        )
