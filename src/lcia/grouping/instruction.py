"""What is told, grouped and routed: conversations, and the instruction that a prompt gives."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lcia.errors import ConfigError, DataError
from lcia.grouping.templates import (
    find_templates,
    infer_templates,
    recurring_count,
    recurring_words,
)
from lcia.registry import nearest


# The simplest first: where two reproduce the field equally often, the earlier one is kept.
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


POSITIONAL = ("whole", "first_paragraph", "first_line", "last_line", "before_colon")
_READ_ALL = {"whole", "regex", "infer"}
KINDS = (*POSITIONAL, "system", "regex", "infer", "field")


@dataclass(frozen=True, kw_only=True)
class InstructionRecipe:
    """How to find the instruction in a prompt.

    Attributes:
        kind: ``whole`` prompt; ``first_paragraph``, ``first_line`` or ``last_line`` that is not
            blank; ``before_colon``: what stands before the first colon that white space follows;
            ``system``: the system turn; ``regex``: the first group of ``pattern``, or its whole
            match; ``infer``: the lines or sentences that recur over a task's prompts; ``field``:
            the data name the instruction.
        pattern: of kind ``regex``.
        templates: of kind ``infer``, filled in by `fit`.

    ``whole``, ``regex`` and ``infer`` read all that a conversation says to the model; lines and
    paragraphs are those of the user's turns.

    `fit` turns ``field`` into the recipe of another kind that reproduces the field best, because
    nobody names the instruction when a question is asked.
    """

    kind: str = "infer"
    pattern: str | None = None
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = nearest(str(self.kind), KINDS)
            raise ConfigError(f"instruction: {self.kind!r} is not a recipe. {hint}")
        if (self.kind == "regex") != (self.pattern is not None):
            raise ConfigError(
                "instruction: a pattern goes with the recipe 'regex', and only with it. "
                'Write {regex: "..."}.'
            )
        if self.pattern is not None:
            _compile(self.pattern)

    @classmethod
    def parse(cls, spec: "str | Mapping[str, Any] | InstructionRecipe") -> "InstructionRecipe":
        """Build a recipe from what a configuration holds: a kind, or ``{regex: "..."}``.

        Raises:
            ConfigError: unknown kind, or a pattern that does not compile.
        """
        if isinstance(spec, InstructionRecipe):
            return spec
        if isinstance(spec, str):
            return cls(kind=spec)
        if isinstance(spec, Mapping) and set(spec) == {"regex"}:
            return cls(kind="regex", pattern=spec["regex"])
        raise ConfigError(
            f'instruction: found {spec!r}; expected one of {", ".join(KINDS)} or {{regex: "..."}}.'
        )

    def fit(self, prompts: Sequence[Prompt], fields: Sequence[str | None] = ()) -> "Extraction":
        """Learn how to find the instruction of a task's prompts, and find it in each of them.

        Args:
            prompts: what a task's training prompts say: raw text, or a conversation.
            fields: the instruction of each prompt as the data name it; only ``field`` needs them.

        Raises:
            DataError: there are no prompts, or ``field`` was asked for and a field is missing.
        """
        if not prompts:
            raise DataError("There are no prompts to find an instruction in; expected at least 1.")
        if self.kind == "field":
            return _fit_field(prompts, fields)
        recipe = self
        if self.kind == "infer":
            recipe = replace(self, templates=tuple(infer_templates(list(map(whole, prompts)))))
        return recipe.apply(prompts)

    def apply(self, prompts: Sequence[Prompt]) -> "Extraction":
        """Find the instruction of each prompt with the recipe as it is."""
        found = [self.find(prompt) for prompt in prompts]
        texts = [
            whole(prompt).strip() if text is None else text
            for prompt, text in zip(prompts, found, strict=True)
        ]
        return Extraction(
            recipe=self,
            counts=_by_frequency(texts),
            prompts=len(prompts),
            whole_prompts=found.count(None),
            system=self.system_lines(prompts),
        )

    def system_lines(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """Return the lines of instructions that come from system turns."""
        if self.kind not in {"infer", "whole"}:
            return ()
        systems = dict.fromkeys(p.system for p in prompts if isinstance(p, Said) and p.system)
        found: dict[str, None] = {}
        for system in systems:
            lines = system.split("\n")
            if self.kind == "infer":
                lines = find_templates(system, self.templates)[0]
            found |= dict.fromkeys(line for line in lines if line.strip())
        return tuple(found)

    def split(self, prompt: Prompt) -> tuple[str | None, str]:
        """Return the instruction of ``prompt``, None where there is none, and what else it says.

        Raises:
            ConfigError: the recipe is ``field`` and was not fitted.
        """
        if self.kind == "system":
            said = prompt if isinstance(prompt, Said) else Said(turns=(prompt,))
            return said.system.strip() or None, said.user.strip()
        if isinstance(prompt, Said):
            prompt = prompt.whole if self.kind in _READ_ALL else prompt.user
        if self.kind == "infer":
            templates, rest = find_templates(prompt, self.templates)
            return ("\n".join(templates) or None), rest
        found = self._locate(prompt)
        if found is None or not found.strip():
            return None, prompt.strip()
        before, _, after = prompt.partition(found)
        return found.strip(), (before + after).strip()

    def find(self, prompt: Prompt) -> str | None:
        """Return the instruction of ``prompt``, or None where the recipe does not find one.

        Raises:
            ConfigError: the recipe is ``field`` and was not fitted.
        """
        return self.split(prompt)[0]

    def extract(self, prompt: Prompt) -> str:
        """Return the instruction of ``prompt``: the whole of it where the recipe finds none."""
        found = self.find(prompt)
        return whole(prompt).strip() if found is None else found

    def _locate(self, prompt: str) -> str | None:
        if self.kind == "regex":
            match = _compile(self.pattern or "").search(prompt)
            return match[1 if match.re.groups else 0] if match else None
        if self.kind == "field":
            raise ConfigError("instruction: the recipe 'field' has to be fitted before it is used.")
        return _POSITIONS[self.kind](prompt)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        return {key: value for key, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "InstructionRecipe":
        """Build the recipe `to_dict` wrote."""
        return cls(**{**record, "templates": tuple(record.get("templates", ()))})


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The instructions found in a task's prompts.

    Attributes:
        recipe: the fitted recipe; it needs raw text alone.
        counts: unique instruction to the number of prompts it was found in, most frequent first.
        prompts: how many prompts were read.
        whole_prompts: in how many the recipe found nothing, so the whole prompt was taken.
        system: those lines of the instructions that stand in system turns.
        agreement: share of prompts where ``recipe`` gives back the field the data named, in [0, 1];
            None where no field was asked for.
    """

    recipe: InstructionRecipe
    counts: Mapping[str, int]
    prompts: int
    whole_prompts: int = 0
    system: tuple[str, ...] = ()
    agreement: float | None = None

    @property
    def instructions(self) -> list[str]:
        """The unique instructions, most frequent first."""
        return list(self.counts)

    def without_prompts(self, prompts: Sequence[str], *, task: str) -> "Extraction":
        """Return the extraction with no text that is a whole prompt of the task.

        A prompt that recurs is an instruction and stays. In place of the others stand the words
        that recur over the prompts, as one text; the task's name where none do.

        Args:
            prompts: the task's training prompts.
            task: its name.
        """
        least = recurring_count(len(prompts))
        whole = Counter(prompt.strip() for prompt in prompts)
        counts = {text: n for text, n in self.counts.items() if not 0 < whole[text] < least}
        if dropped := sum(self.counts.values()) - sum(counts.values()):
            words = " ".join(recurring_words(prompts)) or task
            counts[words] = counts.get(words, 0) + dropped
        kept = {line for text in counts for line in text.split("\n")}
        return replace(
            self,
            counts=dict(sorted(counts.items(), key=lambda c: (-c[1], c[0]))),
            system=tuple(line for line in self.system if line in kept),
        )

    def describe(self) -> str:
        """Return one line: what was taken as the instruction, and from how many prompts."""
        line = (
            f"{len(self.counts)} unique instructions in {self.prompts} prompts "
            f"(recipe {self.recipe.kind})"
        )
        if self.whole_prompts:
            line += f"; none found in {self.whole_prompts}, where the whole prompt was taken"
        if self.agreement is not None:
            line += f"; the recipe gives the named field back in {self.agreement:.0%}"
        return line


def _fit_field(prompts: Sequence[Prompt], fields: Sequence[str | None]) -> Extraction:
    missing = [number for number, field in enumerate(fields, 1) if not (field or "").strip()]
    if len(fields) != len(prompts) or missing:
        where = f"the first without one is number {missing[0]}" if missing else f"got {len(fields)}"
        raise DataError(
            f"instruction: 'field' needs a named instruction for each of {len(prompts)} prompts; "
            f"{where}. Name the field in the data or choose another recipe, such as 'infer'."
        )
    wanted = [str(field).strip() for field in fields]

    def agreement(recipe: InstructionRecipe) -> float:
        same = sum(
            recipe.find(prompt) == field for prompt, field in zip(prompts, wanted, strict=True)
        )
        return same / len(prompts)

    systems = any(isinstance(prompt, Said) and prompt.system for prompt in prompts)
    kinds = (*POSITIONAL, "system") if systems else POSITIONAL
    recipe = max((InstructionRecipe(kind=kind) for kind in kinds), key=agreement)
    return Extraction(
        recipe=recipe,
        counts=_by_frequency(wanted),
        prompts=len(prompts),
        agreement=agreement(recipe),
    )


def _by_frequency(texts: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0])))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"instruction: the pattern {pattern!r} does not compile: {error}.") from (
            error
        )


def _whole(prompt: str) -> str:
    return prompt


def _first_paragraph(prompt: str) -> str:
    return re.split(r"\n[^\S\n]*\n", prompt.lstrip(), maxsplit=1)[0]


def _first_line(prompt: str) -> str:
    return prompt.lstrip().partition("\n")[0]


def _last_line(prompt: str) -> str:
    return prompt.rstrip().rpartition("\n")[2]


def _before_colon(prompt: str) -> str | None:
    match = re.search(r":(?=\s|$)", prompt)
    return prompt[: match.start()] if match else None


_POSITIONS = {
    "whole": _whole,
    "first_paragraph": _first_paragraph,
    "first_line": _first_line,
    "last_line": _last_line,
    "before_colon": _before_colon,
}
