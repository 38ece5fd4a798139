"""The settings of grouping and routing."""

import math
from dataclasses import dataclass
from typing import Any

from lcia.errors import ConfigError
from lcia.registry import SIMILARITIES, nearest

GROUPS = ("similar", "one", "per_task")
AGGREGATES = ("best", "mean")
POLICIES = ("nearest", "content", "latest", "base")
ROUTE_ON = ("instruction", "prompt", "both")
STARTS = ("fresh", "nearest", "latest")


@dataclass(frozen=True, kw_only=True)
class GroupingConfig:
    """How instructions are compared, grouped and routed.

    Attributes:
        groups: ``similar`` tasks share a group, all share ``one``, or each opens its own
            (``per_task``). None: as the method prefers; without a method, ``similar``.
        similarity: a name of ``lcia.registry.SIMILARITIES``; ``tfidf`` is the paper's.
        aggregate: group similarity from pair similarities: ``best`` is the mean over the current
            instructions of their best match in the group, ``mean`` (the paper's) the mean over all
            pairs. The mean falls as a group grows more diverse; docs/grouping.md measures both.
        threshold: in [0, 1]; a group at least this similar is reused (paper: 0.9 for one template
            a task, 0.3 for diverse templates).
        below: what answers a prompt whose best group stays below the threshold: the ``nearest``
            group, the one whose prompts are about the same (``content``; the base model where they
            are about nothing that was taught), the ``latest`` one (the authors' released code) or
            the ``base`` model.
        start: what a new group's adapter starts from: ``fresh`` (the paper), or a copy of the
            ``nearest`` group's or of the ``latest`` trained one, which stay as they are;
            docs/study.md measures both.
        route_on: what answering compares: the ``instruction`` (the paper), the whole ``prompt``
            with prototypes of each task's prompts, or ``both``.
        route_threshold: what ``below`` refers to when answering; None: ``threshold``. Similarities
            of prompts are lower than those of instructions, so ``prompt`` and ``both`` need one.
        encoder: of ``similarity: embedding``: hub name or path of a transformers encoder;
            None: ``all-minilm-l6-v2``.
    """

    groups: str | None = None
    similarity: str = "tfidf"
    aggregate: str = "best"
    threshold: float = 0.9
    below: str = "nearest"
    start: str = "latest"
    route_on: str = "instruction"
    route_threshold: float | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.groups is not None:
            _check_choice("groups", self.groups, GROUPS)
        _check_choice("similarity", self.similarity, SIMILARITIES.names())
        _check_choice("aggregate", self.aggregate, AGGREGATES)
        _check_choice("below", self.below, POLICIES)
        _check_choice("start", self.start, STARTS)
        _check_choice("route_on", self.route_on, ROUTE_ON)
        _check_share("threshold", self.threshold)
        if self.route_threshold is not None:
            _check_share("route_threshold", self.route_threshold)
        if self.encoder is not None and not isinstance(self.encoder, str):
            raise ConfigError(f"grouping.encoder is {self.encoder!r}; expected a name or a path.")

    @property
    def reuse_threshold(self) -> float:
        """What a group's similarity has to reach for a task to join it."""
        return {"one": 0.0, "per_task": math.inf}.get(self.groups or "similar", self.threshold)

    @property
    def answer_threshold(self) -> float:
        """The threshold when answering; one group answers everything."""
        if self.groups == "one":
            return 0.0
        return self.threshold if self.route_threshold is None else self.route_threshold


def _check_share(key: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ConfigError(f"grouping.{key} is {value!r}; expected a number from 0 to 1.")


def _check_choice(key: str, value: Any, choices: list[str] | tuple[str, ...]) -> None:
    if value not in choices:
        hint = nearest(str(value), choices)
        raise ConfigError(f"grouping.{key} is {value!r}, which is not a choice. {hint}")
