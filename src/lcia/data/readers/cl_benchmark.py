"""O-LoRA's CL_Benchmark: sentences and labels, a folder a data set, a folder of them a kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError, found
from lcia.data.readers.fields import text
from lcia.data.readers.source import BrokenJSONError, load_bytes, parse
from lcia.data.sample import Message, Sample
from lcia.errors import DataError

LABELS = "labels.json"
"""Beside the data: a list of the answers to choose from."""

INSTRUCTIONS = {
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option.\n",
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? '
    "Choose one from the option.\n",
    "SC": "What is the sentiment of the following paragraph? Choose one from the option.\n",
    "TC": "What is the topic of the following paragraph? Choose one from the option.\n",
    "BoolQA": "According to the following passage, is the question true or false? Choose one "
    "from the option.\n",
    "MultiRC": "According to the following passage and question, is the candidate answer true or "
    "false? Choose one from the option.\n",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both "
    "sentence? Choose one from the option.\n",
    "COPA": "",
}
"""What the benchmark asks, word for word, by the folder above a data set's; COPA's sentences ask
themselves."""


class ClBenchmarkReader(Reader):
    """O-LoRA's CL_Benchmark, {"sentence", "label"}, with labels.json beside the file.

    The prompt is what the benchmark asks for the kind of task, the options, the sentence and
    ``Answer:``; what stands before the sentence is the instruction. The kind is the name of the
    folder above the data set's: CL_Benchmark/TC/agnews/train.json.

    Source: Wang et al. 2023, arXiv:2310.14152, and its repository.
    """

    expected: ClassVar[str] = '{"sentence": ..., "label": ...} with labels.json beside the file'
    fields: ClassVar[frozenset[str]] = frozenset({"sentence", "label"})

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``sentence`` and ``label``."""
        return "sentence" in record and "label" in record

    def open(self, path: Path) -> None:
        """Read the options beside a file, and what is asked from the name of the folder above.

        Raises:
            DataError: there are none, or the folder is none of the benchmark's.
        """
        folder = (path if path.is_dir() else path.parent).absolute()
        kind = folder.parent.name
        if not (folder / LABELS).is_file() or kind not in INSTRUCTIONS:
            raise DataError(
                f"{path}: has sentences and labels; expected it in a folder of CL_Benchmark, such "
                f"as TC/agnews, with {LABELS} beside it and one of {', '.join(INSTRUCTIONS)} "
                "above. For other data say --map prompt=sentence,answer=label."
            )
        self._labels = _labels(folder / LABELS)
        self._instruction = f"{INSTRUCTIONS[kind]}Option: {', '.join(self._labels)}"

    def sample(self, record: Record) -> Sample:
        """Return the sample of one record, whose label is one of the options."""
        sentence = text(record.value.get("sentence"), "sentence")
        label = text(record.value.get("label"), "label")
        if label not in self._labels:
            raise RecordError(
                f"label is {found(label)}; expected one of {LABELS}: {', '.join(self._labels)}."
            )
        prompt = f"{self._instruction} \n{sentence}\nAnswer:"
        return Sample(
            id=record.id,
            messages=(Message(role="user", content=prompt),),
            answers=(label,),
            instruction=self._instruction,
        )


def _labels(path: Path) -> list[str]:
    try:
        value = parse(load_bytes(path))
    except BrokenJSONError as error:
        raise DataError(f"{path}:{error.line}: {error}") from error
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise DataError(f"{path}: is {found(value)}; expected a list of texts, the options.")
    return value
