"""The canary: a new version answers a share of the traffic until its answers have proven it.

It is worse if more of its answers fail, are refusals, or get a thumb down, than of the earlier
version's in the same time: one-sided exact tests, at fixed numbers of answers, and for the last
time after so many hours. What is counted is in the database, so a server that is started again
goes on.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from lcia.errors import ConfigError, StoreError
from lcia.gate.paired import fisher
from lcia.learner import Store
from lcia.live.database import Database, canaries, canary_answers, feedback, now

logger = logging.getLogger(__name__)

RUNNING, PROMOTED, WORSE, ROLLED_BACK, ENDED = (
    "running",
    "promoted",
    "worse",
    "rolled_back",
    "ended",
)
"""What became of a canary. ``worse``: the earlier version answers again, and the store is still to
be rolled back. ``ended``: another release came, or somebody else moved the store."""

LOOKS = (0.1, 0.25, 0.5, 1.0)
"""Shares of a canary's answers after which it is judged."""

MEASURES = ("failed", "refused", "thumbs_down")


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """How a new version is tried.

    Attributes:
        share: of the traffic that it answers, in (0, 1).
        answers: of its own, after which it is released to all.
        alpha: the chance of rolling back a version that is no worse, over all looks and measures.
        hours: after which it is judged for the last time, however few its answers are. The gate
            let it through already; a server that is hardly asked would keep two versions for ever.
    """

    share: float = 0.1
    answers: int = 200
    alpha: float = 0.05
    hours: float = 24.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: one is out of range.
        """
        if not 0 < self.share < 1:
            raise ConfigError(
                f"--canary: found {self.share:g}; expected a share above 0 and below 1, or 0 for "
                "no canary."
            )
        if self.answers < 1:
            raise ConfigError(f"--canary-answers: found {self.answers}; expected at least 1.")
        if not self.hours > 0:
            raise ConfigError(f"--canary-hours: found {self.hours:g}; expected more than 0.")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer, as a canary counts it.

    Attributes:
        id: of the answer.
        version: that answered.
        text: what it said; None where it failed.
        finish_reason: why it ended.
    """

    id: str
    version: int
    text: str | None
    finish_reason: str | None = None

    @property
    def is_refusal(self) -> bool:
        """Whether it is empty, cut off by its length, or declines to answer."""
        from lcia.gate.general import refuses  # torch, which those that only list do without

        if self.text is None:
            return False
        return not self.text.strip() or self.finish_reason == "length" or refuses(self.text)


Canary = dict[str, Any]


class Canaries:
    """The canaries of one assistant, of which at most one is on.

    Args:
        database: where they are.
        config: how new ones are tried.
    """

    def __init__(self, database: Database, config: CanaryConfig | None = None) -> None:
        self._database = database
        self._config = config or CanaryConfig()

    def latest(self) -> Canary | None:
        """Return the canary that began last; None if there never was one."""
        with self._database.begin() as connection:
            return _latest(connection)

    def of(self, version: int) -> Canary | None:
        """Return the latest canary of a version, with its counts so far."""
        asked = select(canaries).where(canaries.c.version == version)
        asked = asked.order_by(canaries.c.number.desc()).limit(1)
        with self._database.begin() as connection:
            row = connection.execute(asked).mappings().first()
            if row is None:
                return None
            found = dict(row)
            return {**found, "counts": found["counts"] or _counts(connection, found)}

    def begin(self, *, before: int, version: int) -> Canary:
        """Try a version beside the one before; one that is on ends, and its earlier version stays.

        Another server of the same database may have begun it.
        """
        with self._database.begin() as connection:
            on = _latest(connection)
            if on is not None and on["state"] == RUNNING:
                if on["version"] == version:
                    return on
                before = on["before"]
                _end(connection, on, ENDED, f"version {version} was released")
            row = {
                "created_at": now(),
                "version": version,
                "before": before,
                "share": self._config.share,
                "answers": self._config.answers,
                "looks": 0,
                "state": RUNNING,
            }
            connection.execute(insert(canaries).values(row))
            found = _latest(connection)
            assert found is not None
            return found

    def settle(self, version: int, why: str) -> None:
        """Note that a version answers everything; a canary that is on ends."""
        row: dict[str, Any] = {"version": version, "before": version, "share": 1.0}
        row |= {
            "created_at": now(),
            "answers": 0,
            "looks": 0,
            "state": PROMOTED,
            "ended_at": now(),
            "why": why,
        }
        with self._database.begin() as connection:
            on = _latest(connection)
            if on is not None and on["state"] in (RUNNING, WORSE):
                _end(connection, on, ENDED, why)
            connection.execute(insert(canaries).values(row))

    def is_worse(self) -> bool:
        """Tell whether a version was worse and the store still has to be rolled back."""
        on = self.latest()
        return on is not None and on["state"] == WORSE

    def end(self, state: str, why: str) -> Canary | None:
        """End the canary that is on; return it, None if none is."""
        with self._database.begin() as connection:
            on = _latest(connection)
            if on is None or on["state"] not in (RUNNING, WORSE):
                return None
            _end(connection, on, state, why)
            return {**on, "state": state, "why": why}

    def count(self, answered: Iterable[Answered]) -> None:
        """Count answers of both versions, while a canary is on."""
        with self._database.begin() as connection:
            on = _latest(connection)
            if on is None or on["state"] != RUNNING:
                return
            rows = [
                {
                    "id": one.id,
                    "canary": on["number"],
                    "version": one.version,
                    "failed": one.text is None,
                    "refused": one.is_refusal,
                }
                for one in answered
                if one.version in (on["before"], on["version"])
            ]
            if rows:
                connection.execute(insert(canary_answers), rows)

    def judge(self) -> Canary | None:
        """Judge the canary that is on if it is time to; return it as it is then."""
        with self._database.begin() as connection:
            on = _latest(connection)
            if on is None or on["state"] != RUNNING:
                return on
            counts = _counts(connection, on)
            given = counts["version"]["answers"]
            looks = sum(given >= share * on["answers"] for share in LOOKS)
            hours = (now() - on["created_at"]) / 3600
            if hours >= self._config.hours:  # the last look comes early: there are no more of them
                looks = len(LOOKS)
            if looks == on["looks"]:
                return on
            here = and_(canaries.c.number == on["number"], canaries.c.state == RUNNING)
            connection.execute(update(canaries).where(here).values(looks=looks))
            tests = len(LOOKS) * len(MEASURES)
            why = worse(counts, alpha=self._config.alpha / tests)
            if why is not None:
                _end(connection, on, WORSE, f"after {given} answers {why}")
            elif looks == len(LOOKS):
                after = f"{given} answers" if given else "no answers"
                if given < on["answers"]:
                    after += f" in {hours:.3g} hours"
                _end(connection, on, PROMOTED, f"{after}, none of the rates is higher")
            return _latest(connection)


def worse(counts: Mapping[str, Mapping[str, int]], *, alpha: float) -> str | None:
    """Return which rate of the new version is higher than the earlier one's; None if none is.

    Args:
        counts: of ``version`` and ``before``: ``answers``, and how many of each measure.
        alpha: of each one-sided exact test.
    """
    new, old = counts["version"], counts["before"]
    names = {"failed": "failed", "refused": "were refusals", "thumbs_down": "got a thumb down"}
    for measure in MEASURES:
        p = fisher(new[measure], new["answers"], old[measure], old["answers"])
        if p < alpha:
            return (
                f"{new[measure]} of {new['answers']} {names[measure]}, of the earlier version's "
                f"{old[measure]} of {old['answers']} (p {p:.2g}, allowed {alpha:.2g})"
            )
    return None


def settle(store: Store, tried: Canaries, canary: Canary) -> bool:
    """Move the store back from a version that was worse; False where somebody is changing it."""
    try:
        if canary["version"] in lineage(store):
            store.roll_back(canary["before"])
    except StoreError as error:
        logger.debug("the store is not rolled back yet: %s", error)
        return False
    tried.end(ROLLED_BACK, str(canary["why"]))
    return True


def lineage(store: Store) -> Iterator[int]:
    """Yield the current version's number and those that it builds on."""
    number = store.current_number
    while number:
        yield number
        try:
            number = store.past(number).manifest["parent"]
        except StoreError:
            return


def _latest(connection: Connection) -> Canary | None:
    asked = select(canaries).order_by(canaries.c.number.desc()).limit(1)
    row = connection.execute(asked).mappings().first()
    return None if row is None else dict(row)


def _end(connection: Connection, canary: Canary, state: str, why: str) -> None:
    """Record the end of a canary with its counts; what they were counted from goes."""
    counts = canary["counts"] or _counts(connection, canary)
    here = and_(canaries.c.number == canary["number"], canaries.c.state == canary["state"])
    values = {"state": state, "ended_at": now(), "why": why, "counts": counts}
    if connection.execute(update(canaries).where(here).values(values)).rowcount:
        of = canary_answers.c.canary == canary["number"]
        connection.execute(delete(canary_answers).where(of))


def _counts(connection: Connection, canary: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    found = {}
    for side in ("version", "before"):
        own = and_(
            canary_answers.c.canary == canary["number"],
            canary_answers.c.version == canary[side],
        )
        count = select(func.count()).select_from(canary_answers).where(own)
        down = (
            select(func.count(func.distinct(canary_answers.c.id)))
            .select_from(canary_answers.join(feedback, feedback.c.receipt == canary_answers.c.id))
            .where(own, feedback.c.rating == -1)
        )
        asked = {
            "answers": count,
            "failed": count.where(canary_answers.c.failed),
            "refused": count.where(canary_answers.c.refused),
            "thumbs_down": down,
        }
        found[side] = {k: int(connection.execute(a).scalar() or 0) for k, a in asked.items()}
    return found
