"""Which group answers a prompt."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lcia.errors import ConfigError
from lcia.grouping.codebook import ALIKE, InstructionCodebook
from lcia.grouping.config import POLICIES
from lcia.grouping.instruction import Prompt, Said, whole
from lcia.registry import nearest

ROUTED_CHARACTERS = 1 << 14
"""What is read of a longer prompt, half from its beginning and half from its end.

Instructions stand there, and routing is to cost the same whatever somebody pastes in between.
"""

# Where no task has its instruction, somebody may have put it: before the text instead of after it.
_LINE, _PARAGRAPH, _SENTENCE = map(re.compile, (r"\n", r"\n\s*\n", r"(?<=[.!?:])\s+"))

LEAST_FIT = 0.1
"""Nats a term by which a group has to explain a prompt better than chance does, for ``content``.

One in twenty prompts of tasks that were taught stays below it when its instruction is missing.
"""

SURE = 0.6
"""Probability from which content decides between siblings: one word that only one of them knows.

Below it, the one opened first answers.
"""

TURNS = 8
"""User turns looked at, from the last one back."""


class Reading(NamedTuple):
    """What may be a prompt's instruction, the rest of the prompt, and groups' similarities."""

    instruction: str
    rest: str
    scores: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RouteDecision:
    """Which group answers a prompt, and why.

    Attributes:
        group: the group; None for the base model without an adapter.
        similarity: of the most similar group, in [0, 1]; 0 where there is none. With ``route_on:
            both`` the mean of the similarities of instruction and input.
        nearest: the most similar group, whether it was chosen or not.
        runner_up: the second most similar group.
        runner_up_similarity: its similarity.
        reason: ``reached`` (the threshold), ``content`` (several groups reach it alike, and what
            the prompt is about decides between them), ``below_nearest``, ``below_content``,
            ``below_latest``, ``below_base`` (the policy that chose), ``off_topic`` (the base model,
            because ``content`` fits no group), ``task_given`` (nothing was compared) or
            ``no_groups``.
        instruction: the text that was taken for the instruction.
        instruction_found: False where no stored recipe found an instruction, so the whole
            prompt was compared.
    """

    group: str | None
    similarity: float
    nearest: str | None
    runner_up: str | None
    runner_up_similarity: float
    reason: str
    instruction: str
    instruction_found: bool

    @property
    def margin(self) -> float:
        """How much more similar the nearest group is than the runner-up."""
        return self.similarity - self.runner_up_similarity


@dataclass(frozen=True, kw_only=True)
class RouteExplanation:
    """A decision and what it rests on.

    Attributes:
        decision: what `Router.route` returns.
        matched: the nearest group's instruction that is most similar.
        terms: terms of both instructions with their share of the similarity, largest first;
            empty for a similarity that does not come from terms.
        similarities: active group to similarity, the most similar first.
        back: how many user turns before the last the decision rests on.
    """

    decision: RouteDecision
    matched: str | None
    terms: Mapping[str, float]
    similarities: Mapping[str, float]
    back: int = 0


@dataclass(frozen=True, kw_only=True)
class Considered:
    """A decision, and what of a conversation it rests on.

    Attributes:
        decision: which group answers.
        text: the part that decided.
        back: how many user turns before the last it stands; 0 for the conversation as a whole.
    """

    decision: RouteDecision
    text: Prompt
    back: int = 0


class Router:
    """Sends each prompt to the group whose instructions are closest to its own.

    Args:
        codebook: copied, so later changes to it do not reach the router.
        below: overrides the codebook's policy below the threshold.

    Raises:
        ConfigError: the policy is unknown.
    """

    def __init__(self, codebook: InstructionCodebook, below: str | None = None) -> None:
        self.codebook = codebook.copy()
        self.below = below or codebook.config.below
        if self.below not in POLICIES:
            raise ConfigError(
                f"below: {self.below!r} is not a policy. {nearest(self.below, POLICIES)}"
            )
        groups, active = self.codebook.groups, self.codebook.active
        self.recipes = tuple(dict.fromkeys(task.recipe for g in active for task in g.tasks))
        self._ids = [group.id for group in groups]
        self._retired = np.array([group.retired for group in groups], bool)
        self._latest = max(active, key=lambda group: group.order).id if active else None

    def route(self, prompt: Prompt) -> RouteDecision:
        """Decide which group answers a prompt: a text, or what a conversation says."""
        return self.consider(prompt).decision

    def route_many(self, prompts: Iterable[Prompt]) -> list[RouteDecision]:
        """Decide for each of several prompts."""
        return [self.route(prompt) for prompt in prompts]

    def consider(self, prompt: Prompt) -> Considered:
        """Decide which group answers a conversation, and say which part of it decided.

        It goes by the whole if that is more like a group than every turn of its own; else by the
        last turn that says what to do, with the system turn or without. A follow-up such as "and
        for Peru?" holds no instruction and stays with the group of the turn it follows. Where no
        turn reaches the threshold, the last one decides. ``TURNS`` turns are looked at.
        """
        if isinstance(prompt, str):
            return Considered(decision=self._route(prompt)[0], text=prompt)
        turns = prompt.turns[-TURNS:] or ("",)
        parts = []
        for back, turn in enumerate(reversed(turns)):
            options: list[Prompt] = [turn]
            if prompt.system:
                options += [Said(system=prompt.system, turns=(turn,)), prompt.system]
            found = [Considered(decision=self._route(o)[0], text=o, back=back) for o in options]
            parts.append(max(found, key=lambda one: one.decision.similarity))
        if len(turns) > 1:
            said = Said(system=prompt.system, turns=turns)
            all_of_it = Considered(decision=self._route(said)[0], text=said)
            similarity = all_of_it.decision.similarity
            if all(similarity > one.decision.similarity for one in parts):
                return all_of_it
        reached = (one for one in parts if one.decision.reason in ("reached", "content"))
        last = parts[0]
        if self.below == "content":  # which asks what all of it is about
            said = Said(system=prompt.system, turns=turns)
            last = Considered(decision=self._route(said)[0], text=said)
        return next(reached, last)

    def route_task(self, task: str) -> RouteDecision:
        """Return the group that learned a task: routing where the task's identity is given."""
        groups = [g.id for g in self.codebook.groups if task in {known.name for known in g.tasks}]
        group = groups[0] if groups else None
        return RouteDecision(
            group=group,
            similarity=1.0 if group else 0.0,
            nearest=group,
            runner_up=None,
            runner_up_similarity=0.0,
            reason="task_given" if group else "no_groups",
            instruction="",
            instruction_found=False,
        )

    def explain(self, prompt: Prompt) -> RouteExplanation:
        """Decide, and say what the decision rests on."""
        considered = self.consider(prompt)
        decision, scores = self._route(considered.text)
        matched = None
        if decision.nearest is not None:
            matched = self.codebook.nearest_instruction(decision.instruction, decision.nearest)
        ranked = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= 0]
        return RouteExplanation(
            decision=decision,
            matched=matched,
            terms=self.codebook.backend.shared_terms(decision.instruction, matched or ""),
            similarities={self._ids[i]: float(scores[i]) for i in ranked},
            back=considered.back,
        )

    def _route(self, prompt: Prompt) -> tuple[RouteDecision, NDArray[np.float64]]:
        prompt = _shortened(prompt)
        text = whole(prompt)
        splits = dict(recipe.split(prompt) for recipe in self.recipes)
        told = self._told({found: rest for found, rest in splits.items() if found is not None})
        if not any(map(self._is_known, told)):
            told = [one for one in self._told(self._parts(text)) if self._is_known(one)] or told
        scores, instruction = self._compared(told or self._told({text: text}), text)
        decision = self._decision(scores, instruction, found=bool(told), text=text)
        return decision, scores

    def _told(self, rest_of: Mapping[str, str]) -> list[Reading]:
        """Compare what may be a prompt's instruction, each with the rest of that prompt."""
        if self.codebook.config.route_on == "prompt":
            return [Reading(*item, np.empty(0)) for item in rest_of.items()]
        found = [Reading(*i, self.codebook.instruction_scores(i[0])) for i in rest_of.items()]
        for reading in found:
            reading.scores[self._retired] = -1
        return found

    def _parts(self, text: str) -> dict[str, str]:
        """Return lines, paragraphs and sentences at both ends of a text, with the rest of it."""
        count = self.codebook.backend.parts
        parts: dict[str, str] = {}
        for units in (_LINE.split(text), _PARAGRAPH.split(text), _SENTENCE.split(text)):
            for part in map(str.strip, (*units[:count], *units[count:][-count:])):
                rest = text.replace(part, "", 1).strip()
                if part and rest:
                    parts[part] = rest
        return parts

    def _is_known(self, reading: Reading) -> bool:
        return bool(reading.scores.max(initial=-1) >= self._threshold)

    def _compared(self, told: Sequence[Reading], text: str) -> tuple[NDArray[np.float64], str]:
        """Return how similar each group is to a prompt, and the reading that is most similar."""
        route_on = self.codebook.config.route_on
        if route_on == "prompt":
            scores = self.codebook.prompt_scores(text)
            scores[self._retired] = -1
            return scores, told[0].instruction
        found = [reading.scores for reading in told]
        if route_on == "both":
            found = [(r.scores + self.codebook.prompt_scores(r.rest)) / 2 for r in told]
        nearest_of = [scores.max(initial=-1) for scores in found]
        scores = np.max(found, axis=0)
        scores[self._retired] = -1
        return scores, told[int(np.argmax(nearest_of))].instruction

    def _decision(
        self, scores: NDArray[np.float64], instruction: str, *, found: bool, text: str
    ) -> RouteDecision:
        best, similarity = self._highest(scores)
        sibling = self._sibling(scores, text) if similarity >= self._threshold else None
        if sibling is not None:
            best, similarity = sibling, float(scores[self._ids.index(sibling)])
        others = scores.copy()
        if best is not None:
            others[self._ids.index(best)] = -1
        second, runner_up_similarity = self._highest(others)
        group, reason = self._choose(best, similarity, text)
        if sibling is not None and reason == "reached":
            reason = "content"
        return RouteDecision(
            group=group,
            similarity=similarity,
            nearest=best,
            runner_up=second,
            runner_up_similarity=runner_up_similarity,
            reason=reason,
            instruction=instruction,
            instruction_found=found,
        )

    @property
    def _threshold(self) -> float:
        return self.codebook.config.answer_threshold

    def _sibling(self, scores: NDArray[np.float64], text: str) -> str | None:
        """Return which of several groups with alike instructions answers; None: cannot tell."""
        least = max(0.0, scores.max(initial=-1) - ALIKE)
        alike = [self._ids[i] for i in np.flatnonzero(scores >= least)]
        if len(alike) < 2:
            return None
        found = self.codebook.tell_apart(alike, text)
        return found[0] if found is not None and found[1] >= SURE else None

    def _highest(self, scores: NDArray[np.float64]) -> tuple[str | None, float]:
        """Return the most similar group, of equals the one opened first, and its similarity."""
        if scores.max(initial=-1) < 0:
            return None, 0.0
        position = int(np.argmax(scores))
        return self._ids[position], float(scores[position])

    def _choose(self, best: str | None, similarity: float, text: str) -> tuple[str | None, str]:
        if best is None:
            return None, "no_groups"
        if similarity >= self._threshold:
            return best, "reached"
        if self.below == "content":
            group, fit = self.codebook.read_content(text)
            return (group, "below_content") if fit >= LEAST_FIT else (None, "off_topic")
        chosen = {"nearest": best, "latest": self._latest, "base": None}[self.below]
        return chosen, f"below_{self.below}"


def _shortened(prompt: Prompt) -> Prompt:
    """Return a prompt whose texts have at most ``ROUTED_CHARACTERS``, without their middles."""
    if isinstance(prompt, Said):
        return Said(system=_cut(prompt.system), turns=tuple(map(_cut, prompt.turns)))
    return _cut(prompt)


def _cut(text: str) -> str:
    half = ROUTED_CHARACTERS // 2
    return text if len(text) <= ROUTED_CHARACTERS else f"{text[:half]}\n{text[-half:]}"
