"""Which group answers a prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

from lcia.errors import ConfigError
from lcia.grouping.codebook import InstructionCodebook, two_highest
from lcia.grouping.config import POLICIES
from lcia.registry import nearest


@dataclass(frozen=True, kw_only=True)
class RouteDecision:
    """Which group answers a prompt, and why.

    Attributes:
        group: the group; None for the base model without an adapter.
        similarity: of the most similar group, in [0, 1]; 0 where there is none.
        nearest: the most similar group, whether it was chosen or not.
        runner_up: the second most similar group.
        runner_up_similarity: its similarity.
        reason: ``reached`` (the threshold), ``below_nearest``, ``below_latest``, ``below_base``
            (the policy that chose) or ``no_groups``.
        instruction: the text that was compared.
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
        active = self.codebook.active
        self.recipes = tuple(dict.fromkeys(task.recipe for g in active for task in g.tasks))
        self._latest = max(active, key=lambda group: group.order).id if active else None

    def route(self, text: str) -> RouteDecision:
        """Decide which group answers the prompt ``text``."""
        found = dict.fromkeys(recipe.find(text) for recipe in self.recipes)
        instructions = [instruction for instruction in found if instruction is not None]
        scores: dict[str, float] = {}
        compared = text
        for instruction in instructions or [text]:
            similarities = self.codebook.similarities([instruction])
            if not scores or max(similarities.values()) > max(scores.values()):
                compared = instruction
            scores = {g: max(s, scores.get(g, 0.0)) for g, s in similarities.items()}
        return self._decision(scores, instruction=compared, found=bool(instructions))

    def route_many(self, texts: Iterable[str]) -> list[RouteDecision]:
        """Decide for each of several prompts."""
        return [self.route(text) for text in texts]

    def _decision(
        self, scores: dict[str, float], *, instruction: str, found: bool
    ) -> RouteDecision:
        best, second = two_highest(scores)
        similarity = scores[best] if best else 0.0
        group, reason = self._choose(best, similarity)
        return RouteDecision(
            group=group,
            similarity=similarity,
            nearest=best,
            runner_up=second,
            runner_up_similarity=scores[second] if second else 0.0,
            reason=reason,
            instruction=instruction,
            instruction_found=found,
        )

    def _choose(self, best: str | None, similarity: float) -> tuple[str | None, str]:
        if best is None:
            return None, "no_groups"
        if similarity >= self.codebook.config.threshold:
            return best, "reached"
        chosen = {"nearest": best, "latest": self._latest, "base": None}[self.below]
        return chosen, f"below_{self.below}"
