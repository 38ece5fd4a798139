"""What is said to a model as a whole: what is grouped, and what is routed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model is told in a conversation; its own answers are left out.

    Attributes:
        system: the system turns, a blank line between; empty where there are none.
        turns: the user's turns, the last one last.
    """

    system: str = ""
    turns: tuple[str, ...] = ()

    @classmethod
    def by(cls, turns: Iterable[tuple[str, str]]) -> "Said":
        """Read pairs of role and text; ``developer`` is another word for ``system``."""
        said = list(turns)
        system = [text for role, text in said if role in {"system", "developer"}]
        return cls(
            system="\n\n".join(text for text in system if text.strip()),
            turns=tuple(text for role, text in said if role == "user"),
        )

    @property
    def user(self) -> str:
        """The user's turns as one text, a blank line between."""
        return "\n\n".join(self.turns)

    @property
    def whole(self) -> str:
        """All of it as one text, a blank line between turns."""
        return "\n\n".join(part for part in (self.system, *self.turns) if part)

    @property
    def is_one_turn(self) -> bool:
        """Whether it is nothing but one turn of the user."""
        return not self.system and len(self.turns) == 1

    def parts(self) -> Iterator[str]:
        """Yield every text."""
        yield from (self.system, *self.turns) if self.system else self.turns


Prompt = str | Said


def told(messages: Sequence[Any]) -> Prompt:
    """Return what messages say to a model: the text of a single turn, else all of it.

    Args:
        messages: anything with ``role`` and ``content``.
    """
    said = Said.by((message.role, message.content) for message in messages)
    return said.turns[0] if said.is_one_turn else said


def whole(prompt: Prompt) -> str:
    """Return a prompt as one text."""
    return prompt if isinstance(prompt, str) else prompt.whole


def without(text: str, lines: frozenset[str]) -> str:
    """Return an instruction without some of its lines; the whole of it if none would be left."""
    if not lines:
        return text
    return "\n".join(line for line in text.split("\n") if line not in lines) or text


def undecided(tasks: Iterable[tuple[Sequence[str], Iterable[str]]]) -> frozenset[str]:
    """Return the lines of system turns that tasks share and that do not tell them apart.

    A line such as "You are a helpful assistant." stands in the system turn of tasks whose other
    instructions differ. Where nothing else is said, the system turn is the instruction.

    Args:
        tasks: of each task the lines of its system turns, and its instructions.
    """
    seen: dict[str, frozenset[str]] = {}
    shared = set()
    for system, instructions in tasks:
        for line in set(system):
            others = {without(text, frozenset({line})) for text in instructions} - {line}
            if others and seen.setdefault(line, frozenset(others)) != others:
                shared.add(line)
    return frozenset(shared)
