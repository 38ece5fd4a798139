"""Which adapter group a task joins, and which group answers a prompt.

Learning a task::

    extraction = InstructionRecipe.parse("infer").fit(prompts)          # or .fit(prompts, fields)
    decision = codebook.decide(extraction.instructions)                 # -> GroupDecision
    group = codebook.add(decision.group, extraction, task="agnews")     # None opens "g1", "g2", ...
    codebook.save(version / "codebook.json")

Answering a prompt::

    router = Router(InstructionCodebook.load(path))                     # a snapshot
    router.route(prompt)                                                # -> RouteDecision
    router.route_many(prompts)

Signatures:

    GroupingConfig(*, similarity="tfidf", aggregate="best", threshold=0.9, below="nearest",
                   route_on="instruction", encoder=None)
    InstructionRecipe.parse(spec: str | Mapping | InstructionRecipe) -> InstructionRecipe
    InstructionRecipe.fit(prompts, fields=()) -> Extraction
    InstructionRecipe.find(prompt) -> str | None        # extract(prompt) -> str: else the whole
    Extraction: recipe, counts {instruction: prompts}, instructions, prompts, whole_prompts,
                agreement, describe()
    InstructionCodebook(config=None): decide(instructions), add(group, extraction, *, task),
                similarities(instructions), groups, active, group(id), save, load, copy
    Router(codebook, below=None): route(text), route_many(texts)
    pair_similarity(a, b) -> (len(a), len(b))
"""

from lcia.grouping.codebook import Group, GroupDecision, InstructionCodebook, TaughtTask
from lcia.grouping.config import GroupingConfig
from lcia.grouping.instruction import Extraction, InstructionRecipe
from lcia.grouping.router import RouteDecision, Router
from lcia.grouping.tfidf import pair_similarity

__all__ = [
    "Extraction",
    "Group",
    "GroupDecision",
    "GroupingConfig",
    "InstructionCodebook",
    "InstructionRecipe",
    "RouteDecision",
    "Router",
    "TaughtTask",
    "pair_similarity",
]
