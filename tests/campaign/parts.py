"""The parts of the campaign: each yields its cases, and says what is wrong with one."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from campaign import concurrency, damage, malice, upgrades
from campaign import inputs as fuzz
from campaign.driver import KILL
from campaign.place import Place
from campaign.stores import read_log

Case = tuple[str, Callable[[], str | None]]
"""What it is called, and what runs it: None if all is well, else what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        name: in tables.
        oracle: what a case has to show.
        cases: of some stores; ``share`` of them, drawn by seed, all for 1.
        quick: the share in ``make test``; 0: it has a test of its own there.
    """

    name: str
    oracle: str
    cases: Callable[[Any, float], Iterator[Case]]
    quick: float


def _drawn(cases, share, seed):
    listed = list(cases)
    if share >= 1:
        return listed
    count = min(len(listed), max(1, round(share * len(listed))))
    drawn = random.Random(f"{seed} {share}").sample(range(len(listed)), count)
    return [listed[i] for i in sorted(drawn)]


def _scenarios(stores, share):
    """All of them; of a small share, those that differ most."""
    few = (
        *("create", "learn, a group is retrained", "learn, the gate refuses", "rollback"),
        *("groups split", "prune", "export"),
    )
    for name in stores.scenarios() if share > 0.05 else few:
        yield stores.scenario(name)


def crash_points(stores, share):
    for scenario in _scenarios(stores, share):
        for mode, at in _drawn(damage.points(scenario), share, scenario.name):
            when = "before" if mode == KILL else "after"
            yield (
                f"{scenario.name}: killed {when} call {at}",
                lambda s=scenario, m=mode, a=at: damage.crash(stores, s, m, a),
            )


def disk_failures(stores, share):
    for scenario in _scenarios(stores, share):
        points = [(error, at) for error in damage.ERRORS for at in range(scenario.calls)]
        for error, at in _drawn(points, share, scenario.name):
            yield (
                f"{scenario.name}: {error} from call {at} on",
                lambda s=scenario, e=error, a=at: damage.fail(stores, s, e, a),
            )


def power_losses(stores, share):
    for scenario in _scenarios(stores, share):
        operations = read_log(stores.log(scenario.name))
        points = [(w, at) for w in damage.LOSSES for at in range(len(operations) + 1)]
        drawn = _drawn(points, share, scenario.name)
        for loss, at in dict.fromkeys((*drawn, *((w, len(operations)) for w in damage.LOSSES))):
            yield (
                f"{scenario.name}: {loss} lost at call {at}",
                lambda s=scenario, o=operations, a=at, w=loss: damage.lose(stores, s, o, a, w),
            )


def flipped_bits(stores, share):
    per_file = max(2, round(400 * share))
    for base in ("three", "interrupted") if share >= 1 else ("three",):
        root = stores.copy(base)
        for path, place, bit in damage.flips(root, per_file=per_file):
            yield (
                f"{base}/{path.relative_to(root)}: byte {place}",
                lambda r=root, p=path, a=place, b=bit: damage.flip(r, p, a, b),
            )


def malicious_stores(stores, share):
    for name in _drawn(malice.ATTACKS, share, "malice"):
        yield name, lambda n=name: malice.attack(stores, n)


def processes_together(stores, share):
    for seed in range(max(1, round(100 * share))):
        yield f"round {seed}", lambda s=seed: concurrency.together(stores, s)


def earlier_schemas(stores, share):
    cases = [(schema, check) for schema in upgrades.schemas() for check in upgrades.CHECKS]
    for schema, check in _drawn(cases, share, "upgrades"):
        yield f"{schema} {check}", lambda s=schema, c=check: upgrades.CHECKS[c](stores, s)


def fuzzed_inputs(stores, share):
    place = Place(stores.fresh("fuzz"), stores.model)
    return fuzz.cases(place, round(10_000 * share), seed=0)


PARTS = (
    Part(
        name="crash points",
        oracle="opens, verifies; the same command ends as the undisturbed one, to the bit",
        cases=crash_points,
        quick=0.004,
    ),
    Part(
        name="power loss",
        oracle="the version before or a whole newer one opens, verifies; an ended command holds",
        cases=power_losses,
        quick=0.02,
    ),
    Part(
        name="failing disks",
        oracle="one line; nothing lost; with room, the same command ends as undisturbed",
        cases=disk_failures,
        quick=0.002,
    ),
    Part(
        name="flipped bits",
        oracle="`lcia verify` finds it and names the file",
        cases=flipped_bits,
        quick=0.005,
    ),
    Part(
        name="malicious stores",
        oracle="refused with one line, within 3 GiB and a minute",
        cases=malicious_stores,
        quick=0.2,
    ),
    Part(
        name="processes together",
        oracle="no torn state is read; each command ends well or says who is busy",
        cases=processes_together,
        quick=0.01,
    ),
    Part(
        name="earlier schemas",
        oracle="opens unchanged, verifies, resumes, learns on, finds flipped bits",
        cases=earlier_schemas,
        quick=0.5,
    ),
    Part(
        name="fuzz",
        oracle="an answer or one line, never a traceback or a hang; a refusal changes no store",
        cases=fuzzed_inputs,
        quick=0,
    ),
)
