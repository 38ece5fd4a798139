"""Which adapter group a task joins, and which group answers a prompt.

Learning a task::

    extraction = InstructionRecipe.parse("infer").fit(prompts)          # or .fit(prompts, fields)
    decision = codebook.decide(extraction.instructions, system=extraction.system)
    group = codebook.add(decision.group, extraction, task="agnews")     # None opens "g1", "g2", ...
    codebook.save(version / "codebook.json")

Answering a prompt::

    router = Router(InstructionCodebook.load(path))                     # a snapshot
    router.route(prompt)                                                # -> RouteDecision
    router.route_many(prompts)

A conversation is grouped and routed by all that it says to the model::

    router.route(told(messages))                                        # str | Said
    router.consider(told(messages))                                     # and which part decided

What a threshold would do to a stream, before any training::

    tasks = {name: recipe.fit(prompts), ...}                            # name -> Extraction
    plan_groups(tasks, config)                                          # name -> (group, decision)
    shares_told_apart(tasks, prompts, planned)                          # name -> share, of siblings
    suggest_threshold(tasks, config)                                    # threshold and levels
    task_similarities(tasks, config)                                    # (tasks, tasks)

Signatures:

    GroupingConfig(*, groups=None, similarity="tfidf", aggregate="best", threshold=0.9,
                   below="nearest", start="latest", route_on="instruction", route_threshold=None,
                   encoder=None)
    InstructionRecipe.parse(spec: str | Mapping | InstructionRecipe) -> InstructionRecipe
    InstructionRecipe.fit(prompts, fields=()) -> Extraction
    InstructionRecipe.find(prompt) -> str | None        # split(prompt) -> (instruction, rest)
    InstructionRecipe.extract(prompt) -> str            # the whole prompt where none is found
    Extraction: recipe, counts {instruction: prompts}, instructions, prompts, whole_prompts,
                agreement, describe()
    InstructionCodebook(config=None): decide(instructions, *, system=()), similarities(...),
                add(group, extraction, *, task, prompts=()), groups, active, group(id),
                merge(group, other), split(group, tasks), rename(group, name), retire(group),
                save(path), load(path), copy()
    Router(codebook, below=None): route(text), route_many(texts), explain(text)
    pair_similarity(a, b) -> (len(a), len(b))
"""

from lcia.grouping.advice import (
    ThresholdAdvice,
    ThresholdLevel,
    plan_groups,
    shares_told_apart,
    suggest_threshold,
    task_similarities,
)
from lcia.grouping.codebook import GroupDecision, InstructionCodebook
from lcia.grouping.config import GroupingConfig
from lcia.grouping.groups import Group, TaughtTask
from lcia.grouping.instruction import Extraction, InstructionRecipe, Prompt, Said, told
from lcia.grouping.router import Considered, RouteDecision, RouteExplanation, Router
from lcia.grouping.tfidf import pair_similarity

__all__ = [
    "Considered",
    "Extraction",
    "Group",
    "GroupDecision",
    "GroupingConfig",
    "InstructionCodebook",
    "InstructionRecipe",
    "Prompt",
    "RouteDecision",
    "RouteExplanation",
    "Router",
    "Said",
    "TaughtTask",
    "ThresholdAdvice",
    "ThresholdLevel",
    "pair_similarity",
    "plan_groups",
    "shares_told_apart",
    "suggest_threshold",
    "task_similarities",
    "told",
]
