"""The instructions of every adapter group, and the decision which group a task belongs to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.errors import ConfigError, DataError, StoreError
from lcia.grouping.backend import Similarity
from lcia.grouping.config import GroupingConfig
from lcia.grouping.instruction import Extraction, InstructionRecipe
from lcia.registry import SIMILARITIES, nearest

SCHEMA = 1
# Similarities are summed in units of 2^-42, as integers: exact, so no order of instructions can
# change a decision, and room for two million rows a group.
_ONE = float(2**42)


@dataclass(frozen=True, kw_only=True)
class TaughtTask:
    """What one task left in a group.

    Attributes:
        name: the task.
        order: position in the order of learning over all groups, from 1.
        recipe: finds the instruction in a raw prompt.
        instructions: unique instruction to the number of prompts it was found in.
    """

    name: str
    order: int
    recipe: InstructionRecipe
    instructions: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        return {
            "name": self.name,
            "order": self.order,
            "recipe": self.recipe.to_dict(),
            "instructions": dict(self.instructions),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "TaughtTask":
        """Build the task `to_dict` wrote."""
        return cls(**{**record, "recipe": InstructionRecipe.from_dict(record["recipe"])})


@dataclass(frozen=True, kw_only=True)
class Group:
    """One adapter group.

    Attributes:
        id: ``g1``, ``g2``, ...; never used again.
        tasks: what each task left here, in the order of learning.
        retired: kept, but neither reused nor routed to.
    """

    id: str
    tasks: tuple[TaughtTask, ...] = ()
    retired: bool = False

    @property
    def instructions(self) -> list[str]:
        """The unique instructions, in the order they were learned."""
        return list(dict.fromkeys(text for task in self.tasks for text in task.instructions))

    @property
    def order(self) -> int:
        """Position of the group's last task in the order of learning."""
        return max((task.order for task in self.tasks), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        tasks = [task.to_dict() for task in self.tasks]
        return {"id": self.id, "retired": self.retired, "tasks": tasks}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Group":
        """Build the group `to_dict` wrote."""
        return cls(**{**record, "tasks": tuple(map(TaughtTask.from_dict, record["tasks"]))})


@dataclass(frozen=True, kw_only=True)
class GroupDecision:
    """Which group a task joins.

    Attributes:
        group: the group to retrain; None to open a new one.
        similarity: of the most similar group, in [0, 1]; 0 where there is none.
        nearest: the most similar group, whether it was chosen or not.
        runner_up: the second most similar group.
        similarities: group to similarity, in the groups' order; retired groups are left out.
        reason: ``reuse`` (the threshold is reached), ``expand`` (it is not) or ``first_group``.
    """

    group: str | None
    similarity: float
    nearest: str | None
    runner_up: str | None
    similarities: Mapping[str, float] = field(default_factory=dict)
    reason: str


class InstructionCodebook:
    """The instructions of each adapter group.

    Adding never computes anything stored again. Not safe to change while another thread reads;
    a `Router` takes a copy.
    """

    def __init__(self, config: GroupingConfig | None = None) -> None:
        self.config = config or GroupingConfig()
        self.similarity: Similarity = SIMILARITIES.get(self.config.similarity)(self.config)
        self._groups: dict[str, Group] = {}
        self._opened = 0
        self._reindex()

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, retired ones too, in the order they were opened."""
        return tuple(self._groups.values())

    @property
    def active(self) -> tuple[Group, ...]:
        """The groups that are not retired."""
        return tuple(group for group in self.groups if not group.retired)

    def group(self, group: str) -> Group:
        """Return the group of that id.

        Raises:
            ConfigError: there is none.
        """
        if group not in self._groups:
            raise ConfigError(f"There is no group {group!r}. {nearest(group, self._groups)}")
        return self._groups[group]

    def similarities(self, instructions: Iterable[str]) -> dict[str, float]:
        """Return active group to similarity: the aggregate over instructions and stored ones.

        Raises:
            DataError: there are no instructions.
        """
        texts = list(dict.fromkeys(instructions))
        if not texts:
            raise DataError("There are no instructions to compare; expected at least 1.")
        totals = sum((self._totals(text) for text in texts), np.zeros(len(self._groups), object))
        pairs = len(texts) * (self._sizes() if self.config.aggregate == "mean" else 1)
        values = np.asarray(totals / pairs / _ONE, float)
        return {g.id: float(v) for g, v in zip(self.groups, values, strict=True) if not g.retired}

    def decide(self, instructions: Iterable[str]) -> GroupDecision:
        """Decide which group a task with these instructions joins.

        The most similar group if it reaches the threshold, else a new one; of equally similar
        groups the one opened first.

        Args:
            instructions: the task's instructions; each counts once.

        Raises:
            DataError: there are no instructions.
        """
        similarities = self.similarities(instructions)
        best, second = two_highest(similarities)
        if best is None:
            return GroupDecision(
                group=None, similarity=0.0, nearest=None, runner_up=None, reason="first_group"
            )
        reached = similarities[best] >= self.config.threshold
        return GroupDecision(
            group=best if reached else None,
            similarity=similarities[best],
            nearest=best,
            runner_up=second,
            similarities=similarities,
            reason="reuse" if reached else "expand",
        )

    def add(self, group: str | None, extraction: Extraction, *, task: str) -> str:
        """Record what a task taught, and return its group.

        Args:
            group: the group it joined, or None to open a new one.
            extraction: the task's instructions and the recipe that finds them.
            task: its name. A task learned again adds to what it left in that group before.

        Raises:
            ConfigError: there is no such group.
        """
        target = self.group(group) if group is not None else self._open()
        order = 1 + max((g.order for g in self.groups), default=0)
        kept = [known for known in target.tasks if known.name != task]
        earlier = [known.instructions for known in target.tasks if known.name == task]
        taught = TaughtTask(
            name=task,
            order=order,
            recipe=extraction.recipe,
            instructions=_sum_counts([*earlier, extraction.counts]),
        )
        known_texts = set(target.instructions)
        self._groups[target.id] = replace(target, tasks=(*kept, taught))
        self._index_rows(target.id, [t for t in taught.instructions if t not in known_texts])
        return target.id

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        return {
            "schema": SCHEMA,
            "settings": asdict(self.config),
            "opened": self._opened,
            "groups": [group.to_dict() for group in self.groups],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "InstructionCodebook":
        """Build the codebook `to_dict` wrote."""
        codebook = cls(GroupingConfig(**record["settings"]))
        codebook._opened = record["opened"]
        groups = [Group.from_dict(group) for group in record["groups"]]
        codebook._groups = {group.id: group for group in groups}
        codebook._reindex()
        return codebook

    def copy(self) -> "InstructionCodebook":
        """Return an independent codebook with the same content."""
        return self.from_dict(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write the codebook as JSON."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8", errors="surrogatepass")

    @classmethod
    def load(cls, path: str | Path) -> "InstructionCodebook":
        """Read a codebook; nothing is fitted again.

        Raises:
            StoreError: the file is missing, not a codebook, or of another schema.
        """
        try:
            text = Path(path).read_text(encoding="utf-8", errors="surrogatepass")
            record = json.loads(text)
            if record["schema"] != SCHEMA:
                raise StoreError(
                    f"{path}: codebook schema {record['schema']!r}; this lcia reads {SCHEMA}."
                )
            return cls.from_dict(record)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path}: cannot read the codebook: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: not a codebook: {error!r}.") from error

    def _open(self) -> Group:
        self._opened += 1
        group = Group(id=f"g{self._opened}")
        self._groups[group.id] = group
        return group

    def _reindex(self) -> None:
        self._index = self.similarity.new_index()
        self._row_group = np.zeros(0, np.int64)
        for group in self.groups:
            self._index_rows(group.id, group.instructions)

    def _index_rows(self, group: str, texts: Sequence[str]) -> None:
        self._index.add(texts)
        position = list(self._groups).index(group)
        self._row_group = np.append(self._row_group, np.full(len(texts), position))

    def _sizes(self) -> NDArray[np.int64]:
        return np.maximum(1, np.bincount(self._row_group, minlength=len(self._groups)))

    def _totals(self, text: str) -> NDArray[np.int64]:
        fixed = np.rint(self._index.similarity_to(text) * _ONE).astype(np.int64)
        totals = np.zeros(len(self._groups), np.int64)
        accumulate = np.add if self.config.aggregate == "mean" else np.maximum
        accumulate.at(totals, self._row_group, fixed)
        return totals


def two_highest(similarities: Mapping[str, float]) -> tuple[str | None, str | None]:
    """Return the most similar group and the runner-up; of equals the first comes first."""
    ranked = sorted(similarities, key=lambda group: -similarities[group])
    return (*ranked[:2], None, None)[:2]  # type: ignore[return-value]


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for text, count in part.items():
            total[text] = total.get(text, 0) + count
    return total
