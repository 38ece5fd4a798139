"""When a worker learns accepted corrections by itself: never, unless it is told."""

import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as clock

from sqlalchemy import func, select

from lcia.errors import ConfigError
from lcia.learner import Store
from lcia.live.database import Database, receipts
from lcia.live.feedback.teaching import marked, teach
from lcia.live.inbox import ACCEPTED, Inbox
from lcia.live.jobs import Job

LOOK_S = 5.0
"""Seconds between two looks at whether it is time."""

_SPEC = re.compile(r"(samples|idle_s)\s*:\s*([1-9]\d{0,8})|(nightly)\s*:?\s*\"?(\d\d?:\d\d)\"?")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When accepted corrections are learned.

    Attributes:
        samples: as soon as so many wait; None: their number does not matter.
        idle_s: as soon as nobody asked for so many seconds.
        nightly: at this time of day, by the machine's clock. A night on which no worker ran is
            not made up for.
        accept: whether what is new is accepted, but for what a person should look at.
    """

    samples: int | None = None
    idle_s: int | None = None
    nightly: clock | None = None
    accept: bool = False

    @classmethod
    def parse(cls, text: str, *, accept: bool = False) -> "Policy | None":
        """Read ``samples: 50``, ``idle_s: 60``, ``nightly 02:00``; ``manual`` is None.

        Raises:
            ConfigError: it is something else.
        """
        if text.strip() == "manual":
            return None
        if found := _SPEC.fullmatch(text.strip()):
            try:
                night = datetime.strptime(found[4], "%H:%M").time() if found[3] else None
                number = int(found[2]) if found[1] else None
                return cls(
                    samples=number if found[1] == "samples" else None,
                    idle_s=number if found[1] == "idle_s" else None,
                    nightly=night,
                    accept=accept,
                )
            except ValueError:
                pass  # no time of day
        raise ConfigError(
            f"--learn-when: found {text!r}; expected manual, 'samples: 50', 'idle_s: 60' or "
            "'nightly 02:00'."
        )

    def due(self, *, waiting: int, quiet_s: float, before: datetime, now: datetime) -> bool:
        """Tell whether it is time.

        Args:
            waiting: accepted corrections.
            quiet_s: seconds since the last answer.
            before: when it was last asked whether it is time.
            now: when it is asked.
        """
        if not waiting:
            return False
        if self.samples is not None:
            return waiting >= self.samples
        if self.idle_s is not None:
            return quiet_s >= self.idle_s
        assert self.nightly is not None
        night = datetime.combine(now.date(), self.nightly)
        return before < night <= now or before < night - timedelta(days=1)


class Follower:
    """Queues a job when a policy says that it is time.

    Args:
        policy: says when.
        store: the assistant.
        database: where its inbox is.
    """

    def __init__(self, policy: Policy, store: Store, database: Database) -> None:
        self._policy = policy
        self._store = store
        self._database = database
        self._inbox = Inbox(database)
        self._looked = datetime.now()

    def look(self, *, now: datetime | None = None) -> list[Job]:
        """Queue jobs if it is time; return them.

        Raises:
            DataError: corrections cannot be learned from.
        """
        now, before = now or datetime.now(), self._looked
        if abs((now - before).total_seconds()) < LOOK_S:
            return []
        self._looked = now
        if self._policy.accept:
            self._inbox.decide(None, ACCEPTED, besides=marked(self._inbox.listed()))
        waiting = self._inbox.counts()[ACCEPTED]
        quiet_s = self._quiet_s()
        if not self._policy.due(waiting=waiting, quiet_s=quiet_s, before=before, now=now):
            return []
        return teach(self._store, self._database, name=f"corrections-{now:%Y%m%d-%H%M%S}")

    def _quiet_s(self) -> float:
        with self._database.begin() as connection:
            last = connection.execute(select(func.max(receipts.c.created_at))).scalar()
        return float("inf") if last is None else time.time() - last
