"""From the entries of a task stream to tasks."""

import logging
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lcia.data.images import check_images
from lcia.data.reading import Turns, read
from lcia.data.sample import Sample, Task, check_name
from lcia.data.tables import is_hub_id
from lcia.errors import ConfigError, DataError
from lcia.registry import STREAMS

logger = logging.getLogger(__name__)

SUPERNI_TRAIN = 500
HELD_OUT = 100
HELD_OUT_SHARE = 5
LABEL_REPEATS = 5


class TaskConfig(BaseModel):
    """One entry of ``tasks``.

    Attributes:
        name: letters, digits, '.', '_' and '-'.
        train: a data file; its ``test`` is held out of it where no file is given. Or a folder with
            ``train.json`` and ``test.json``, as benchmarks have them, for both.
        test: a data file that is only scored.
        superni: a Super-NaturalInstructions task file, instead of ``train`` and ``test``.
        scorer: a name of ``lcia.registry.SCORERS``; None: ``exact_match``, of ``superni``
            ``rougeL`` where the answers are free text.
        instruction: how ``lcia.grouping`` finds the instruction; None: ``field`` where every
            train sample names one, else ``infer``.
        max_train: at most so many train samples, drawn by seed; None: all (500 of ``superni``).
        max_test: the same for test; None: all of ``test``, at most 100 held out.
        format: a name of ``lcia.registry.READERS``; None: recognised from the file.
        roles: role in the files to ``system``, ``user`` or ``assistant``.
        images: folder the paths of images start from; None: that of the file they stand in.
        split: the part of a folder or of a hub's data set that ``train`` names.
        test_split: the part that is only scored; of ``train`` where ``test`` is not given.
        map: field to the column that holds it, or to nothing where it is to be left out.
        turns: which answers of a conversation are learned, ``all`` or ``last``; None: as the format
            does.
        max_new_tokens: the longest answer to generate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(check_name)]
    train: Path | None = None
    test: Path | None = None
    superni: Path | None = None
    scorer: str | None = None
    instruction: str | dict[str, Any] | None = None
    max_train: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    format: str | None = None
    roles: dict[str, str] = Field(default_factory=dict)
    images: Path | None = None
    split: str | None = None
    test_split: str | None = None
    map: dict[str, str | None] = Field(default_factory=dict)
    turns: Turns | None = None
    max_new_tokens: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if (self.train is None) == (self.superni is None):
            raise ValueError(f"task '{self.name}': expected either train or superni.")
        if self.superni is not None and (self.test or self.test_split or self.format):
            raise ValueError(f"task '{self.name}': superni stands without test and format.")
        return self


def load_stream(source: str) -> tuple[Task, ...]:
    """Return the tasks of a stream that comes with lcia or a plug-in.

    Args:
        source: ``builtin:NAME``, for example ``builtin:skills``.

    Raises:
        ConfigError: not of this form, or no such stream.
        MissingDependencyError: a package that carries its data is not installed.
    """
    kind, _, name = source.partition(":")
    if kind != "builtin" or not name:
        raise ConfigError(f"stream '{source}': expected builtin:NAME, for example builtin:skills.")
    tasks: tuple[Task, ...] = STREAMS.get(name)()
    return tasks


def load_tasks(
    entries: Iterable[TaskConfig], *, base: str | Path = ".", seed: int = 0
) -> tuple[Task, ...]:
    """Return the tasks of a stream's entries, in their order.

    Args:
        entries: at least one, each with another name.
        base: the folder relative paths start from: that of the stream's file.
        seed: draws what is held out and what is kept of a larger file.

    Raises:
        ConfigError: no entry, two of one name, or a path's variable is not set.
        DataError: a file cannot be read or used, or is too small to hold samples out of it.
    """
    entries = list(entries)
    if not entries:
        raise ConfigError("tasks: is empty; expected at least one task.")
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise ConfigError(f"tasks: two are named '{entry.name}'; expected different names.")
        names.add(entry.name)
    return check_images([_read_task(entry, base=Path(base), seed=seed) for entry in entries])


def load_task(entry: TaskConfig, *, base: str | Path = ".", seed: int = 0) -> Task:
    """Return the task of one entry; the arguments are those of ``load_tasks``.

    Raises:
        ConfigError: a path's variable is not set.
        DataError: a file cannot be read or used, or is too small to hold samples out of it.
    """
    return check_images([_read_task(entry, base=Path(base), seed=seed)])[0]


def _read_task(entry: TaskConfig, *, base: Path, seed: int) -> Task:
    entry = _of_folder(entry, base=base)
    kind = "superni" if entry.superni else "train"
    source = _path(entry, kind, base=base)
    format = "superni" if entry.superni else entry.format
    samples = _read(entry, source, base=base, format=format, split=entry.split)
    train, test = _splits(entry, samples, source=source, base=base, seed=seed)
    free_text = entry.superni is not None and not is_classification(samples)
    named = all(sample.instruction is not None for sample in train)
    return Task(
        name=entry.name,
        train=train,
        test=test,
        scorer=entry.scorer or ("rougeL" if free_text else "exact_match"),
        instruction=entry.instruction or ("field" if named else "infer"),
        max_new_tokens=entry.max_new_tokens,
    )


def _of_folder(entry: TaskConfig, *, base: Path) -> TaskConfig:
    """Return the entry with its files named, where it names a benchmark's folder of a task."""
    if entry.train is None or entry.test or entry.split or entry.test_split:
        return entry
    folder = _path(entry, "train", base=base).absolute()
    files = {kind: folder / f"{kind}.json" for kind in ("train", "test")}
    if not all(path.is_file() for path in files.values()):
        return entry
    return entry.model_copy(update=files)


def _read(entry: TaskConfig, source: Path, *, base: Path, **options: Any) -> list[Sample]:
    """Read one of the files of an entry, as the entry says."""
    images = _path(entry, "images", base=base) if entry.images else None
    options |= {"roles": entry.roles, "columns": entry.map, "turns": entry.turns}
    return read(source, images=images, **options)


def hold_out(
    samples: Sequence[Sample], *, at_most: int, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split samples into train and test, no conversation in both.

    Args:
        samples: in any order; both parts keep it.
        at_most: the size of test, which is also at most a fifth of the samples.
        seed: draws the test conversations; equal on all platforms.

    Returns:
        Train and test; test is empty if a fifth is less than one sample or than the repetitions
        of each drawn conversation.
    """
    size = min(at_most, len(samples) // HELD_OUT_SHARE)
    belongs = _conversations(samples)
    repeats = Counter(belongs)  # in the order of first appearance
    conversations = list(repeats)
    random.Random(seed).shuffle(conversations)
    drawn: set[int] = set()
    for conversation in conversations:
        if repeats[conversation] <= size:
            size -= repeats[conversation]
            drawn.add(conversation)
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, conversation in zip(samples, belongs, strict=True):
        parts[conversation in drawn].append(sample)
    return tuple(parts[0]), tuple(parts[1])


def _conversations(samples: Sequence[Sample]) -> list[int]:
    """Return for each sample the number of its conversation: its first sample's place.

    Of one conversation are samples with the same turns, those of one record, and those whose turns
    begin with another's turns and answer: a conversation written out anew after every answer.
    """
    first: dict[object, int] = {}
    parent = list(range(len(samples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, key: object) -> None:
        other = root(first.setdefault(key, i))
        low, high = sorted((root(i), other))
        parent[high] = low

    for i, sample in enumerate(samples):
        join(i, sample.messages)
        join(i, (sample.messages, sample.answers[0]))
        if sample.conversation is not None:
            join(i, sample.conversation)
    for i, sample in enumerate(samples):
        for k, turn in enumerate(sample.messages):
            begun = (sample.messages[:k], turn.content)
            if turn.role == "assistant" and begun in first:
                join(i, begun)
    return [root(i) for i in range(len(samples))]


def is_classification(samples: Sequence[Sample]) -> bool:
    """Whether the answers are labels: one per sample, each of them five times on average."""
    labels = {sample.answers[0] for sample in samples}
    single = all(len(sample.answers) == 1 for sample in samples)
    return single and len(labels) * LABEL_REPEATS <= len(samples)


def _splits(
    entry: TaskConfig, samples: Sequence[Sample], *, source: Path, base: Path, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    max_train = entry.max_train or (SUPERNI_TRAIN if entry.superni else None)
    if entry.test is None and entry.test_split is None:
        train, test = hold_out(samples, at_most=entry.max_test or HELD_OUT, seed=seed)
        if not test:
            raise DataError(
                f"{source}: {_why_none_is_held_out(samples)} Give task '{entry.name}' a test file."
            )
    else:
        train = tuple(samples)
        path = _path(entry, "test", base=base) if entry.test else source
        split = entry.test_split or (entry.split if entry.test and not path.is_file() else None)
        held_out = _read(entry, path, base=base, format=entry.format, split=split)
        test = _draw(held_out, at_most=entry.max_test, seed=seed)
        _warn_of_overlap(entry.name, train, test)
    return _draw(train, at_most=max_train, seed=seed), test


def _why_none_is_held_out(samples: Sequence[Sample]) -> str:
    count, size = len(samples), len(samples) // HELD_OUT_SHARE
    if size:
        return (
            f"none of {count} samples can be held out: a fifth is {size}, each prompt or "
            "conversation has more, and none may stand in both parts."
        )
    held = "1 sample is" if count == 1 else f"{count} samples are"
    return f"{held} too few to hold out a fifth of them."


def _path(entry: TaskConfig, key: str, *, base: Path) -> Path:
    written: Path = getattr(entry, key)
    if key in ("train", "test") and is_hub_id(written, base=base):
        return written
    return resolve(written, base=base, where=f"task '{entry.name}': {key}")


def _draw(samples: Sequence[Sample], *, at_most: int | None, seed: int) -> tuple[Sample, ...]:
    if at_most is None or len(samples) <= at_most:
        return tuple(samples)
    kept = sorted(random.Random(seed).sample(range(len(samples)), at_most))
    return tuple(samples[i] for i in kept)


def _warn_of_overlap(name: str, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    seen = {sample.messages for sample in train}
    both = sum(sample.messages in seen for sample in test)
    if both:
        logger.warning(
            "task '%s': %d of %d test prompts are also in train: scores will flatter the model.",
            name,
            both,
            len(test),
        )


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def resolve(path: str | Path, *, base: str | Path, where: str) -> Path:
    """Return a path of a stream file, its ``${VARIABLE}`` replaced.

    Args:
        path: relative to ``base``, absolute, or beginning with a variable whose value is then
            relative to the working directory, as the shell's user means it.
        base: folder of the stream's file.
        where: the key that holds the path, for messages.

    Raises:
        ConfigError: a variable is not set.
    """
    text = str(path)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        found = os.environ.get(name)
        if not found:
            rest = text[match.end() :].strip("/")
            holds = f" that holds '{rest}'" if rest else ""
            raise ConfigError(
                f"{where} is '{text}', but the environment variable {name} is not set. Set it to "
                f"the folder{holds}, for example: export {name}=/path/to/folder"
            )
        return os.path.abspath(found) if match.start() == 0 else found

    return Path(base) / _VARIABLE.sub(value, text)
