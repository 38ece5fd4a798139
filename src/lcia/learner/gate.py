"""Whether a new version may replace the current one: evidence, checks, report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcia.config import AssistantConfig, GateConfig
from lcia.data.sample import Sample, Task
from lcia.distributed.processes import from_main, on_main
from lcia.errors import GateError
from lcia.evaluation.generate import Adapters, Prediction
from lcia.evaluation.scorers import mean_percent, score_each
from lcia.files import read_json, write_json
from lcia.gate.checks import CHECKS, Evidence, max_drop
from lcia.gate.general import Adapter, General, Side, losses_of, measure
from lcia.grouping import InstructionCodebook, Router
from lcia.models.host import AdapterHost
from lcia.registry import SCORERS
from lcia.store.journal import Journal
from lcia.store.store import Store
from lcia.store.transaction import Run, refuse, refused
from lcia.store.version import GATE, Version

logger = logging.getLogger(__name__)

CONSTANTS = 20
"""Different answers, at most, of which each is tried as the answer to everything."""

ENOUGH = 20
"""Held-out samples of a new task, at least, to compare it with one answer for all."""

Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class Candidate:
    """What may become a version.

    Attributes:
        task: the task just learned; None where groups were joined.
        codebook: its groups.
        adapters: group to key and folder of its adapter.
        before: task to score in percent of the current version.
        scores: task to score in percent of the candidate.
        earlier: answers of the current version to earlier tasks' held-out samples.
        current: answers of the current version to the new task's held-out samples.
        after: the candidate's answers to all held-out samples.
    """

    task: Task | None
    codebook: InstructionCodebook
    adapters: Adapters
    before: Scores
    scores: Scores
    earlier: Sequence[Prediction]
    current: Sequence[Prediction]
    after: Sequence[Prediction]


def examine(
    host: AdapterHost,
    config: AssistantConfig,
    version: Version,
    candidate: Candidate,
    *,
    run: Run,
    journal: Journal,
) -> dict[str, Any]:
    """Check a candidate against the current version and return the report.

    It is ``gate.json`` in the run's folder; where it is there, it holds. Nothing is drawn that is
    not seeded: a run that was killed in here comes to the same report. Every process calls this,
    the main one measures.
    """
    if not config.gate.looks:
        return {"passed": True, "checks": []}

    def act() -> dict[str, Any]:
        if not run.holds(GATE):
            journal.tell({"event": "gate"})
            found = report_on(host, config, version, candidate)
            write_json(run.folder / GATE, found)
            run.record(GATE)
        return dict(read_json(run.folder / GATE))

    return dict(from_main(act))


def pass_gate(store: Store, host: AdapterHost, report: Mapping[str, Any], *, run: Run) -> None:
    """Let a candidate through, or keep it among the refused ones.

    Raises:
        GateError: it is refused; the message names what it failed.
    """
    if report["passed"]:
        return
    host.clear()
    why = why_refused(report)
    on_main(lambda: refuse(store, run, {"why": why, **report}))
    raise GateError(f"{why} {_kept(store, run)}")


def check_refused(store: Store, config: GateConfig, run: Run, report: Mapping[str, Any]) -> None:
    """Say that a candidate was refused before, instead of training it again.

    Raises:
        GateError: it would be refused with these settings, too.
    """
    same = report.get("settings") == config.model_dump()
    if "settings" not in report:  # of an earlier lcia, which knew ``max_drop`` alone
        before, after = report["before"], report["after"]
        scores = {task: (score, after.get(task)) for task, score in before.items()}
        found = max_drop(Evidence(task=run.task, scores=scores), config)
        same = not all(finding.passed for finding in found)
    if same:
        raise GateError(f"{report['why']} It was trained and refused before. {_kept(store, run)}")


def refused_before(store: Store, config: GateConfig, fingerprint: Any, current: Version) -> None:
    """Look for the same candidate among the refused ones.

    Args:
        store: the assistant.
        config: the gate's settings.
        fingerprint: schema to fingerprint of what is to be learned.
        current: what it builds on.

    Raises:
        GateError: it was trained and refused before.
    """
    for run, report in refused(store).values():
        if run.parent == current.number and run.fingerprint == fingerprint(run.schema):
            check_refused(store, config, run, report)


def why_refused(report: Mapping[str, Any]) -> str:
    """Return in one line what a candidate failed."""
    failed = "; ".join(check["why"] for check in report["checks"] if not check["passed"])
    return f"gate: {failed}. The assistant was left as it was."


def report_on(
    host: AdapterHost, config: AssistantConfig, version: Version, candidate: Candidate
) -> dict[str, Any]:
    """Return what every check finds of a candidate beside the current version, as ``gate.json``."""
    gate = config.gate
    evidence = _evidence(host, config, version, candidate)
    checks = CHECKS if gate.tests == "all" else {"max_drop": max_drop}
    found = [finding for check in checks.values() for finding in check(evidence, gate)]
    return {
        "passed": all(finding.passed for finding in found),
        "task": candidate.task and candidate.task.name,
        "against": version.number,
        "settings": gate.model_dump(),
        "before": dict(candidate.before),
        "after": dict(candidate.scores),
        "checks": [finding.to_json() for finding in found],
    }


def _evidence(
    host: AdapterHost, config: AssistantConfig, version: Version, candidate: Candidate
) -> Evidence:
    task, before, after = candidate.task, candidate.before, candidate.scores
    learned = task.name if task else None
    scores = {name: (before.get(name), score) for name, score in after.items()}
    if config.gate.tests != "all" or not candidate.after:
        return Evidence(task=learned, scores=scores)
    router = Router(candidate.codebook)
    names = [name for name in after if name != learned]
    losses, general = {}, General(neutral=([], []), kl=[], suites={})
    if config.build_method().trains:
        now = Side(codebook=version.codebook(), adapters=version.adapters)
        then = Side(codebook=candidate.codebook, adapters=candidate.adapters)
        size = config.generation.batch_size
        general = measure(host, now, then, batch_size=size)
        losses = {"neutral": general.neutral}
        if task and candidate.current:
            losses["new"] = (
                _losses(host, task, candidate.current, version.adapters),
                _losses(host, task, candidate.after, candidate.adapters),
            )
    return Evidence(
        task=learned,
        scores=scores,
        before=[*candidate.earlier, *candidate.current],
        after=candidate.after,
        homes={name: router.route_task(name).group for name in names},
        constant=_constant(task) if task else None,
        losses=losses,
        kl=general.kl,
        suites=general.suites,
    )


def _losses(
    host: AdapterHost, task: Task, predictions: Sequence[Prediction], adapters: Adapters
) -> list[float]:
    """Return the loss of each held-out answer of the new task, by the adapter that answered it."""
    group_of = {p.sample: p.group for p in predictions if p.task == task.name}
    samples: list[Sample] = [s for s in task.test if s.id in group_of]
    used: list[Adapter] = [
        adapters[group] if (group := group_of[s.id]) is not None else None for s in samples
    ]
    return losses_of(host, samples, used)


def _constant(task: Task) -> float | None:
    """Return the score of the best answer that is the same for every held-out sample, in percent.

    None where all samples have one answer, or hardly two the same: saying it is no shortcut then;
    and where the samples are so few that chance alone would decide.
    """
    answers = [sample.answers for sample in task.test]
    firsts = [given[0] for given in answers]
    kinds = sorted(set(firsts), key=lambda text: (-firsts.count(text), text))
    if len(firsts) < ENOUGH or not 2 <= len(kinds) <= len(firsts) / 2:
        return None
    scorer = SCORERS.get(task.scorer)
    tried = (score_each(scorer, [text] * len(answers), answers) for text in kinds[:CONSTANTS])
    return max(mean_percent(scores) for scores in tried)


def _kept(store: Store, run: Run) -> str:
    return (
        f"The candidate is kept in refused/{run.folder.name}: take it all the same with 'lcia "
        f"accept {store.root} {run.number}', or remove it with 'lcia abandon {store.root} "
        f"--refused {run.number}'."
    )
