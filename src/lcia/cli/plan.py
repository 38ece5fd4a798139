"""``lcia plan``: which task would go to which group, before any training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.run import AsJson, Overrides

if TYPE_CHECKING:
    from lcia.config import StreamConfig
    from lcia.grouping import Extraction, GroupDecision, GroupingConfig, Prompt, ThresholdAdvice


logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(plan)


def plan(
    stream: Annotated[Path, typer.Argument(help="A stream file (YAML).")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write the similarities as .png or .svg.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", hidden=True)] = None,
    overrides: Overrides = [],  # noqa: B006  typer's form of a repeated option
    as_json: AsJson = False,
) -> None:
    """Show which task would join which group, how similar the tasks are, and what to choose.

    One plan for every grouping of the stream's methods and every order.

    Examples:

      lcia plan stream.yaml

      lcia plan stream.yaml --set grouping.threshold=0.5 --plot similarities.png
    """
    from lcia.cli.console import console, print_json
    from lcia.config import load_stream_config
    from lcia.errors import ConfigError
    from lcia.experiments.running import AS_LISTED, stream_tasks
    from lcia.grouping import told
    from lcia.learner import instructions_of

    config = load_stream_config(stream, overrides)
    tasks = stream_tasks(config, base=stream.parent)
    found = {task.name: instructions_of(task) for task in tasks}
    prompts = {task.name: [told(sample.messages) for sample in task.train] for task in tasks}
    plans = [
        _Plan.of(labels, grouping, order, {name: found[name] for name in names}, prompts)
        for grouping, labels in _groupings(config)
        for order, names in (config.orders or {AS_LISTED: tuple(found)}).items()
    ]
    if picture is not None:
        logger.warning("--picture is now called --plot; write --plot.")
    plot = plot or picture
    if plot is not None:
        from lcia.reports.plots import similarity_figure

        if len(plans) > 1:
            raise ConfigError(
                f"--plot draws one plan; there are {len(plans)}: "
                f"{', '.join(one.name for one in plans)}. Choose one with --set methods=[...] or "
                "--set orders={}."
            )
        similarity_figure(list(plans[0].extractions), plans[0].similarities, plot)
    if as_json:
        print_json({"plans": [one.as_dict() for one in plans]})
        return
    for i, one in enumerate(plans):
        if i:
            console.print()
        one.print()


def _groupings(config: "StreamConfig") -> "list[tuple[GroupingConfig, list[str]]]":
    """Return each way in which methods of the stream group similar tasks, with their labels."""
    from lcia.grouping import GroupingConfig

    found: list[tuple[GroupingConfig, list[str]]] = []
    for label, assistant in config.variants().items():
        grouping = assistant.resolve_grouping()
        if grouping.groups != "similar":
            continue
        labels = next((labels for other, labels in found if other == grouping), None)
        if labels is None:
            found.append((grouping, [label]))
        else:
            labels.append(label)
    # Where no method groups: what grouping would do.
    return found or [(config.grouping or GroupingConfig(), [])]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How one grouping groups the tasks in one order."""

    labels: Sequence[str]
    order: str
    grouping: "GroupingConfig"
    extractions: "Mapping[str, Extraction]"
    decisions: "Mapping[str, tuple[str, GroupDecision]]"
    similarities: Any
    told_apart: Mapping[str, float]
    advice: "ThresholdAdvice"

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        grouping: "GroupingConfig",
        order: str,
        extractions: "Mapping[str, Extraction]",
        prompts: "Mapping[str, Sequence[Prompt]]",
    ) -> "_Plan":
        from lcia.grouping import (
            plan_groups,
            shares_told_apart,
            suggest_threshold,
            task_similarities,
        )

        decisions = plan_groups(extractions, grouping)

        return cls(
            labels=labels,
            order=order,
            grouping=grouping,
            extractions=extractions,
            decisions=decisions,
            similarities=task_similarities(extractions, grouping),
            told_apart=shares_told_apart(extractions, prompts, decisions),
            advice=suggest_threshold(extractions, grouping),
        )

    @property
    def name(self) -> str:
        """Who groups so, in which order."""
        return f"{', '.join(self.labels) or 'no method'}, {self.order}"

    def print(self) -> None:
        """Print groups, similarities and what other thresholds would do."""
        from lcia.cli.console import console, number, print_table
        from lcia.decision.choice import TOLD_APART

        rows = [
            [
                task,
                group,
                number(decision.similarity, 2),
                decision.reason,
                f"{self.told_apart[task]:.0%}" if task in self.told_apart else "–",
                f"{len(extraction.instructions)}: {extraction.instructions[0][:50]}",
            ]
            for (task, extraction), (group, decision) in zip(
                self.extractions.items(), self.decisions.values(), strict=True
            )
        ]
        how = f"threshold {self.grouping.threshold:g} ({self.grouping.similarity})"
        columns = ["task", "group", "similarity", "reason", "told apart", "instructions"]
        print_table(f"Groups of {self.name}, at {how}", columns, rows, left=(0, 5))
        if self.told_apart:
            console.print(
                "\nTold apart: the share of prompts that would find their own if the task opened a "
                "sibling group instead. lcia measures after training which of the two is better, "
                f"and opens none below {TOLD_APART:.0%}.",
                markup=False,
                soft_wrap=True,
            )
        rows = [
            [f"{i} {name}", *(number(float(s), 2) for s in row)]
            for i, (name, row) in enumerate(
                zip(self.extractions, self.similarities, strict=True), start=1
            )
        ]
        console.print()
        numbers = [str(i) for i in range(1, len(rows) + 1)]
        print_table("Similarity of tasks", ["task", *numbers], rows)
        rows = [
            [f"{level.low:.2f} – {level.high:.2f}", str(level.group_count), _members(level.groups)]
            for level in self.advice.levels
        ]
        console.print()
        columns = ["threshold", "groups", "which"]
        print_table("What the threshold does", columns, rows, left=(0, 2))
        console.print(
            f"\nThe widest range with more than one group suggests "
            f"grouping.threshold={self.advice.threshold:.2f}",
            markup=False,
            soft_wrap=True,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        names = list(self.extractions)
        return {
            "labels": list(self.labels),
            "order": self.order,
            "similarity": self.grouping.similarity,
            "threshold": self.grouping.threshold,
            "decisions": [
                {
                    "task": task,
                    "group": group,
                    "similarity": decision.similarity,
                    "reason": decision.reason,
                    "told_apart": self.told_apart.get(task),
                    "instructions": list(self.extractions[task].instructions),
                }
                for task, (group, decision) in self.decisions.items()
            ],
            "similarities": {
                name: dict(zip(names, row.tolist(), strict=True))
                for name, row in zip(names, self.similarities, strict=True)
            },
            "levels": [
                {"above": level.low, "to": level.high, "groups": dict(level.groups)}
                for level in self.advice.levels
            ],
            "suggested_threshold": self.advice.threshold,
        }


def _members(groups: Any) -> str:
    """Return ``a+b | c``: the tasks of each group."""
    members: dict[str, list[str]] = {}
    for task, group in groups.items():
        members.setdefault(group, []).append(task)
    return " | ".join("+".join(tasks) for tasks in members.values())
