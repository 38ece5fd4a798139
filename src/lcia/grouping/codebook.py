"""The instructions of every adapter group, and the decision which group a task belongs to."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.errors import ConfigError, DataError, LciaError, StoreError
from lcia.files import read_json, write_json
from lcia.grouping.config import GroupingConfig
from lcia.grouping.content import Content, ContentIndex
from lcia.grouping.groups import Group, TaughtTask
from lcia.grouping.index import GroupedRows, Similarity
from lcia.grouping.instruction import Extraction, Prompt, undecided, whole, without
from lcia.registry import SIMILARITIES, nearest

SCHEMA = 1
ALIKE = 0.02
"""Groups within this of the highest similarity are siblings: instructions do not decide there."""

TEMPER = 4.0
"""What the evidence of content is divided by: it counts a word in two views, alone and in pairs."""

PROMPTS_READ = 64
"""Prompts of a task that are read to choose the sibling that it is most like."""

LIMIT = 1 << 28
"""Bytes of a codebook that are read at most: embeddings of many instructions are many numbers."""


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
        self.backend: Similarity = SIMILARITIES.get(self.config.similarity)(self.config)
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

    def similarities(
        self, instructions: Iterable[str], *, system: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return active group to similarity: the aggregate over instructions and stored ones.

        Args:
            instructions: those of a task; each counts once.
            system: those of their lines that stand in system turns.

        Raises:
            DataError: there are no instructions.
        """
        given = list(instructions)
        if not given:
            raise DataError("There are no instructions to compare; expected at least 1.")
        shared = self._find_undecided((system, given))
        if shared != self._undecided:
            informed = self.copy()
            informed._reindex(shared)
            return informed._compare(given)
        return self._compare(given)

    def _compare(self, instructions: Iterable[str]) -> dict[str, float]:
        texts = sorted({without(text, self._undecided) for text in instructions})
        # In sorted order, so that no order of instructions changes a digit.
        mean = sum(map(self.instruction_scores, texts), np.zeros(len(self._groups))) / len(texts)
        return {
            group.id: value
            for group, value in zip(self.groups, mean.tolist(), strict=True)
            if not group.retired
        }

    def instruction_scores(self, text: str) -> NDArray[np.float64]:
        """Return the similarity of one instruction to every group, shape (groups,)."""
        return self._instructions.scores(without(text, self._undecided), len(self._groups))

    def prompt_scores(self, text: str) -> NDArray[np.float64]:
        """Return the similarity of a prompt to every group's nearest prototype, shape (groups,)."""
        return self._prompts.scores(text, len(self._groups))

    def nearest_instruction(self, text: str, group: str) -> str | None:
        """Return the group's instruction most similar to ``text``; None where it has none."""
        nearest_item: str | None = self._instructions.nearest_item(
            without(text, self._undecided), list(self._groups).index(self.group(group).id)
        )
        return nearest_item

    def decide(
        self,
        instructions: Iterable[str],
        *,
        system: Sequence[str] = (),
        prompts: Sequence[Prompt] = (),
    ) -> GroupDecision:
        """Decide which group a task with these instructions joins.

        The most similar group if it reaches the threshold, else a new one; of siblings, which are
        alike in their instructions, the one whose prompts are most like the task's; of equally
        similar groups the one opened first. ``config.groups`` may say ``one`` group, or one
        ``per_task``.

        Args:
            instructions: the task's instructions; each counts once.
            system: those of their lines that stand in system turns: what tasks share there, and
                what does not tell them apart, is left out.
            prompts: the task's, to choose between siblings.

        Raises:
            DataError: there are no instructions.
        """
        similarities = self.similarities(instructions, system=system)
        ranked = sorted(similarities, key=lambda group: -similarities[group])
        if not ranked:
            return GroupDecision(
                group=None, similarity=0.0, nearest=None, runner_up=None, reason="first_group"
            )
        alike = [g for g in ranked if similarities[g] >= similarities[ranked[0]] - ALIKE]
        if len(alike) > 1 and (nearest := self._most_like(alike, prompts)) is not None:
            ranked.remove(nearest)
            ranked.insert(0, nearest)
        reached = similarities[ranked[0]] >= self.config.reuse_threshold
        return GroupDecision(
            group=ranked[0] if reached else None,
            similarity=similarities[ranked[0]],
            nearest=ranked[0],
            runner_up=ranked[1] if len(ranked) > 1 else None,
            similarities=similarities,
            reason="reuse" if reached else "expand",
        )

    def add(
        self,
        group: str | None,
        extraction: Extraction,
        *,
        task: str,
        prompts: Sequence[Prompt] = (),
        content: bool = False,
    ) -> str:
        """Record what a task taught, and return its group.

        Args:
            group: the group it joined, or None to open a new one.
            extraction: the task's instructions and the recipe that finds them.
            task: its name. A task learned again adds to what it left in that group before.
            prompts: its training prompts; needed, and read, unless answering compares instructions
                alone (``route_on: instruction``, ``below`` not ``content``, no ``content``).
            content: count what the prompts are about, which tells siblings apart.

        Raises:
            ConfigError: there is no such group.
            DataError: prompts are needed and there are none.
        """
        target = self.group(group) if group is not None else None
        taught = TaughtTask(
            name=task,
            order=1 + max((known.order for known in self.groups), default=0),
            recipe=extraction.recipe,
            instructions=extraction.counts,
            prototypes=self._prototypes(extraction, prompts),
            system=extraction.system,
            content=self._content(extraction, prompts, wanted=content),
        )
        target = target or self._open()
        known_texts = set(self._compared(target))
        position = list(self._groups).index(target.id)
        self._groups[target.id] = target.with_task(taught)
        if self._find_undecided() != self._undecided:
            self._reindex()
            return target.id
        texts = dict.fromkeys(without(text, self._undecided) for text in taught.instructions)
        new_texts = [text for text in texts if text not in known_texts]
        self._instructions.add(position, new_texts)
        self._prompts.add(position, taught.prototypes)
        self._add_content(position, taught)
        return target.id

    def open_above(self, opened: int) -> None:
        """Open later groups with ids above ``g<opened>``: ids of other versions are not used."""
        self._opened = max(self._opened, opened)

    def merge(self, group: str, other: str) -> None:
        """Move everything of ``other`` into ``group``; ``other`` is gone.

        Raises:
            ConfigError: there is no such group, or both are the same.
        """
        target, source = self.group(group), self.group(other)
        if group == other:
            raise ConfigError(f"Group {group!r} cannot be merged with itself. Name two groups.")
        for task in source.tasks:
            target = target.with_task(task)
        self._groups[group] = target
        del self._groups[other]
        self._reindex()

    def split(self, group: str, tasks: Iterable[str]) -> str:
        """Move ``tasks`` of a group into a new one, and return it.

        Raises:
            ConfigError: there is no such group or task, or nothing would move or stay.
        """
        source, wanted = self.group(group), set(tasks)
        names = [task.name for task in source.tasks]
        for name in sorted(wanted - set(names)):
            raise ConfigError(f"Group {group!r} has no task {name!r}. {nearest(name, names)}")
        if not wanted or len(wanted) == len(names):
            raise ConfigError(
                f"A split of group {group!r} has to move some of its tasks and keep some; it has "
                f"{', '.join(names)}."
            )
        target = self._open()
        moved = tuple(task for task in source.tasks if task.name in wanted)
        kept = tuple(task for task in source.tasks if task.name not in wanted)
        self._groups[target.id] = replace(target, tasks=moved)
        self._groups[group] = replace(source, tasks=kept)
        self._reindex()
        return target.id

    def rename(self, group: str, name: str) -> None:
        """Give a group the name people call it; its id stays.

        Raises:
            ConfigError: there is no such group.
        """
        self._groups[group] = replace(self.group(group), name=name)

    def retire(self, group: str, *, retired: bool = True) -> None:
        """Keep a group but neither reuse it nor route to it; or take it back.

        Raises:
            ConfigError: there is no such group.
        """
        self._groups[group] = replace(self.group(group), retired=retired)

    def forget(self, prompts: Collection[str], *, tasks: Collection[str] = ()) -> None:
        """Leave out instructions that are whole prompts, and what tasks' prompts are about.

        Args:
            prompts: without space around them; a task that has no other instruction keeps its name
                as one.
            tasks: names of tasks whose prototypes and word counts go.
        """
        for group in self.groups:
            taught = tuple(
                self._without(task, prompts, all_=task.name in tasks) for task in group.tasks
            )
            self._groups[group.id] = replace(group, tasks=taught)
        self._reindex()

    @staticmethod
    def _without(task: TaughtTask, prompts: Collection[str], *, all_: bool) -> TaughtTask:
        kept = {text: n for text, n in task.instructions.items() if text.strip() not in prompts}
        if all_:
            task = replace(task, prototypes=(), content=None)
        return replace(task, instructions=kept or {task.name: 1})

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        texts = dict.fromkeys(text for group in self.groups for text in group.instructions)
        texts |= dict.fromkeys(text for group in self.groups for text in self._compared(group))
        return {
            "schema": SCHEMA,
            "settings": asdict(self.config),
            "opened": self._opened,
            "groups": [group.to_dict() for group in self.groups],
            "computed": self.backend.computed(list(texts)) if texts else {},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "InstructionCodebook":
        """Build the codebook `to_dict` wrote."""
        codebook = cls(GroupingConfig(**record["settings"]))
        codebook.backend.restore(record["computed"])
        codebook._opened = record["opened"]
        groups = [Group.from_dict(group) for group in record["groups"]]
        codebook._groups = {group.id: group for group in groups}
        codebook._reindex()
        return codebook

    def copy(self) -> "InstructionCodebook":
        """Return an independent codebook with the same content."""
        made = InstructionCodebook(self.config)
        made.backend, made._opened = self.backend, self._opened
        made._groups = dict(self._groups)
        made._reindex(self._undecided)
        return made

    def save(self, path: str | Path) -> None:
        """Write the codebook as JSON, in one line."""
        write_json(Path(path), self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | Path) -> "InstructionCodebook":
        """Read a codebook; nothing is fitted again.

        Raises:
            StoreError: the file is missing, not a codebook, or of another schema.
        """
        try:
            record = read_json(Path(path), limit=LIMIT)
            if record["schema"] == SCHEMA:
                return cls.from_dict(record)
        except LciaError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: not a codebook: {error!r}.") from error
        raise StoreError(f"{path}: codebook schema {record['schema']!r}; this lcia reads {SCHEMA}.")

    def _open(self) -> Group:
        self._opened += 1
        group = Group(id=f"g{self._opened}", name=f"g{self._opened}")
        self._groups[group.id] = group
        return group

    def _prototypes(self, extraction: Extraction, prompts: Sequence[Prompt]) -> tuple[Any, ...]:
        if self.config.route_on == "instruction":
            return ()
        if not prompts:
            raise DataError(
                f"grouping.route_on is {self.config.route_on!r}, which compares prompts, but the "
                "task came without any. Pass its training prompts, or route on 'instruction'."
            )
        if self.config.route_on == "both":
            prompts = [extraction.recipe.split(prompt)[1] for prompt in prompts]
        return tuple(self.backend.prototypes(list(map(whole, prompts))))

    def _content(
        self, extraction: Extraction, prompts: Sequence[Prompt], *, wanted: bool
    ) -> Content | None:
        if self.config.below != "content":
            return self._counted(extraction, prompts) if wanted and prompts else None
        if not prompts:
            raise DataError(
                "grouping.below is 'content', which reads what prompts are about, but the task "
                "came without any. Pass its training prompts, or choose another policy."
            )
        return self._counted(extraction, prompts)

    @staticmethod
    def _counted(extraction: Extraction, prompts: Sequence[Prompt]) -> Content:
        rests = [extraction.recipe.split(prompt)[1] for prompt in prompts]
        return Content.of(list(map(whole, prompts)), rests)

    def _add_content(self, position: int, task: TaughtTask) -> None:
        if task.content is not None:
            self._contents.add(task.content)
            self._content_groups.append(position)

    def read_content(self, text: str) -> tuple[str | None, float]:
        """Return the active group whose prompts are most like a text, and how well that fits.

        Returns:
            The group, None if none knows what its prompts are about; and ``Reading.fit``.
        """
        active = [not self.groups[position].retired for position in self._content_groups]
        reading = self._contents.read(text)
        if not any(active):
            return None, 0.0
        row = int(np.argmax(np.where(active, reading.evidence, -np.inf)))
        return self.groups[self._content_groups[row]].id, float(reading.fit[row])

    def siblings(self, group: str) -> list[str]:
        """Return the other active groups whose instructions are as good as a group's own.

        Raises:
            ConfigError: there is no such group.
        """
        found = self._compare(self.group(group).instructions)
        own = found.pop(group, 0.0)
        return [other for other, similarity in found.items() if similarity >= own - ALIKE]

    def tell_apart(self, groups: Sequence[str], text: str) -> tuple[str, float] | None:
        """Return the group whose prompts are most like a text, and how sure that is, in [0, 1].

        Args:
            groups: active groups whose instructions do not tell them apart.
            text: the prompt.

        Returns:
            None if one of the groups has no content: nothing is known of it then.
        """
        evidence = self._evidence(groups, text)
        if evidence is None:
            return None
        share = np.exp((evidence - evidence.max()) / TEMPER)
        best = int(np.argmax(evidence))
        return groups[best], float(share[best] / share.sum())

    def _evidence(self, groups: Sequence[str], text: str) -> NDArray[np.float64] | None:
        """Return the evidence for each group: that of its likeliest task. Shape (groups,)."""
        evidence = self._contents.read(text).evidence
        found = np.full(len(self._groups), -np.inf)
        np.maximum.at(found, self._content_groups, evidence)
        wanted = found[[list(self._groups).index(group) for group in groups]]
        return wanted if np.isfinite(wanted).all() else None

    def _most_like(self, groups: Sequence[str], prompts: Sequence[Prompt]) -> str | None:
        """Return the group that most of a task's prompts are like; None if that is not known."""
        read = [self._evidence(groups, whole(prompt)) for prompt in prompts[:PROMPTS_READ]]
        known = [evidence for evidence in read if evidence is not None]
        return groups[int(np.argmax(sum(known[1:], known[0])))] if known else None

    def _compared(self, group: Group) -> list[str]:
        """Return the instructions of a group as they are compared."""
        return list(dict.fromkeys(without(text, self._undecided) for text in group.instructions))

    def _find_undecided(self, *others: tuple[Sequence[str], Iterable[str]]) -> frozenset[str]:
        known = [(task.system, list(task.instructions)) for g in self.groups for task in g.tasks]
        return undecided([*known, *others])

    def _reindex(self, shared: frozenset[str] | None = None) -> None:
        self._undecided = self._find_undecided() if shared is None else shared
        self._instructions = GroupedRows(
            self.backend.instruction_index(), mean=self.config.aggregate == "mean"
        )
        self._prompts = GroupedRows(self.backend.prompt_index(), mean=False)
        self._contents = ContentIndex()
        self._content_groups: list[int] = []
        for position, group in enumerate(self.groups):
            self._instructions.add(position, self._compared(group))
            self._prompts.add(position, group.prototypes)
            for task in group.tasks:
                self._add_content(position, task)
