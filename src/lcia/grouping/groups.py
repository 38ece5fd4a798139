"""What the codebook holds: groups, and what each task left in them."""

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lcia.grouping.content import Content
from lcia.grouping.instruction import InstructionRecipe


@dataclass(frozen=True, kw_only=True)
class TaughtTask:
    """What one task left in a group.

    Attributes:
        name: the task.
        order: position in the order of learning over all groups, from 1.
        recipe: finds the instruction in a raw prompt.
        instructions: unique instruction to the number of prompts it was found in.
        prototypes: of its prompts, as the similarity backend writes them; empty where answering
            compares instructions alone.
        system: those lines of the instructions that stand in system turns.
        content: what its prompts are about; None where answering does not ask for it.
    """

    name: str
    order: int
    recipe: InstructionRecipe
    instructions: Mapping[str, int]
    prototypes: tuple[Any, ...] = ()
    system: tuple[str, ...] = ()
    content: Content | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        record = {
            "name": self.name,
            "order": self.order,
            "recipe": self.recipe.to_dict(),
            "instructions": dict(self.instructions),
            "prototypes": list(self.prototypes),
        }
        if self.system:
            record["system"] = list(self.system)
        if self.content is not None:
            record["content"] = self.content.to_dict()
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "TaughtTask":
        """Build the task `to_dict` wrote."""
        recipe = InstructionRecipe.from_dict(record["recipe"])
        lists = {key: tuple(record.get(key, ())) for key in ("prototypes", "system")}
        content = Content.from_dict(record["content"]) if "content" in record else None
        return cls(**{**record, **lists, "recipe": recipe, "content": content})


@dataclass(frozen=True, kw_only=True)
class Group:
    """One adapter group.

    Attributes:
        id: ``g1``, ``g2``, ...; never used again, whatever becomes of the group.
        name: what people call it; the id until it is renamed.
        tasks: what each task left here, in the order of learning.
        retired: kept, but neither reused nor routed to.
    """

    id: str
    name: str
    tasks: tuple[TaughtTask, ...] = ()
    retired: bool = False

    @property
    def instructions(self) -> list[str]:
        """The unique instructions, in the order they were learned."""
        return list(dict.fromkeys(text for task in self.tasks for text in task.instructions))

    @property
    def prototypes(self) -> list[Any]:
        """The prototypes of all its tasks."""
        return [prototype for task in self.tasks for prototype in task.prototypes]

    @property
    def order(self) -> int:
        """Position of the group's last task in the order of learning; 0 without tasks."""
        return max((task.order for task in self.tasks), default=0)

    def with_task(self, task: TaughtTask) -> "Group":
        """Return the group with one more task; one of the same name is added to."""
        earlier = [known for known in self.tasks if known.name == task.name]
        others = [known for known in self.tasks if known.name != task.name]
        merged = replace(
            task,
            order=max(known.order for known in [*earlier, task]),
            instructions=_sum_counts(known.instructions for known in [*earlier, task]),
            prototypes=tuple(p for known in [*earlier, task] for p in known.prototypes),
            system=tuple(dict.fromkeys(s for known in [*earlier, task] for s in known.system)),
            content=_added(known.content for known in [*earlier, task]),
        )
        return replace(self, tasks=tuple(sorted([*others, merged], key=lambda t: t.order)))

    def summary(self, *, most: int | None = None) -> dict[str, Any]:
        """Return what people are shown of the group, as JSON: ``most`` instructions at most."""
        return {
            "id": self.id,
            "name": self.name,
            "retired": self.retired,
            "tasks": [task.name for task in self.tasks],
            "instructions": self.instructions[:most],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        return {
            "id": self.id,
            "name": self.name,
            "retired": self.retired,
            "tasks": [task.to_dict() for task in self.tasks],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Group":
        """Build the group `to_dict` wrote."""
        return cls(**{**record, "tasks": tuple(map(TaughtTask.from_dict, record["tasks"]))})


def _added(contents: Iterable[Content | None]) -> Content | None:
    known = [content for content in contents if content is not None]
    return functools.reduce(operator.add, known) if known else None


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for text, count in part.items():
            total[text] = total.get(text, 0) + count
    return total
