"""From accepted corrections to jobs: what is alike, which group learns it, and when.

A worker learns by itself only if it is told to.
"""

import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as clock
from itertools import chain, zip_longest
from typing import Any

from sqlalchemy import func, select

from lcia.data import Message
from lcia.errors import ConfigError
from lcia.grouping import Router, told
from lcia.learner import Store
from lcia.live.database import Database, receipts
from lcia.live.inbox import ACCEPTED, NEW, REJECTED, Inbox, NoFeedbackError
from lcia.live.jobs import Job
from lcia.live.orders import AUTO, order

Entry = Mapping[str, Any]

TYPED = 5
"""Letters from which a word that differs in one of them may be a slip of the same word."""

_WORD = re.compile(r"\w+")


def marked(entries: Iterable[Entry]) -> dict[int, str]:
    """Return what a person should look at before it is learned: entry to what is the matter.

    Of entries that correct the same prompt, or one that differs by letter case, punctuation or a
    slip of the pen, those that say the same as an earlier one are marked ``same as 3``, and those
    that say something else than another ``contradicts 3``. What was rejected does not count, and
    what was decided is not marked.
    """
    found: dict[int, str] = {}
    for alike in _alike(e for e in entries if e["correction"] and e["state"] != REJECTED):
        for entry in (e for e in alike if e["state"] == NEW):
            said = _words(entry["correction"])
            others = [e for e in alike if e is not entry]
            unlike = [e["number"] for e in others if _words(e["correction"]) != said]
            like = [e["number"] for e in others if _words(e["correction"]) == said]
            earlier = [number for number in like if number < entry["number"]]
            if unlike:
                found[entry["number"]] = f"contradicts {unlike[0]}"
            elif earlier:
                found[entry["number"]] = f"same as {earlier[0]}"
    return found


def teach(
    store: Store,
    database: Database,
    *,
    name: str | None = None,
    seed: int | None = None,
    hyperparameters: Mapping[str, Any] = AUTO,
) -> list[Job]:
    """Queue jobs that learn all accepted corrections, one for each group that answers them.

    Of several accepted corrections of one prompt the latest counts.

    Args:
        store: the assistant.
        database: where its inbox is.
        name: of the task; where several groups learn, theirs are added. None: made up.
        seed: None: the assistant's.
        hyperparameters: as those of a job.

    Raises:
        NoFeedbackError: nothing is accepted.
        OrderError: the name was used, or cannot be.
        JobStateError: a job that has not ended teaches a task of this name.
    """
    inbox = Inbox(database)
    accepted = inbox.listed(state=ACCEPTED)
    if not accepted:
        raise NoFeedbackError(
            "No correction is accepted. Accept some: lcia inbox accept STORE --all."
        )
    router = Router(store.current.codebook())
    by_group: dict[str, list[list[Entry]]] = defaultdict(list)
    for alike in _alike(accepted):
        by_group[_answered_by(router, alike[-1])].append(alike)
    name = name or f"corrections-{secrets.token_hex(4)}"
    batches = []
    for group, classes in by_group.items():
        task = name if len(by_group) == 1 else f"{name}-{group}"
        job = order(store, task=task, seed=seed, hyperparameters=hyperparameters)
        job["settings"] = {**job["settings"], "corrects": True}
        batches.append((job, [alike[-1] for alike in classes], list(chain(*classes))))
    return inbox.teach(batches)


def _answered_by(router: Router, entry: Entry) -> str:
    group = router.route(told([Message(**turn) for turn in entry["prompt"]])).group
    return group or "base"


def _alike(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return classes of entries that correct the same prompt, each the oldest first."""
    classes: list[tuple[Sequence[str], list[Entry]]] = []
    by_length: dict[int, list[tuple[Sequence[str], list[Entry]]]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: e["number"]):
        words = _words("\n".join(f"{t['role']} {t['content']}" for t in entry["prompt"]))
        known = next((c for w, c in by_length[len(words)] if _same(w, words)), None)
        if known is None:
            known = []
            by_length[len(words)].append((words, known))
            classes.append((words, known))
        known.append(entry)
    return [found for _, found in classes]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether texts have the same words, but for a slip in one of them."""
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if len(differing) > 1:
        return False
    return all(min(len(a), len(b)) >= TYPED and _is_slip(a, b) for a, b in differing)


def _is_slip(one: str, other: str) -> bool:
    """Tell whether one letter more, less or other, or two exchanged, make the difference."""
    if not (one.isalpha() and other.isalpha()) or abs(len(one) - len(other)) > 1:
        return False
    if len(one) == len(other):
        places = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        swapped = len(places) == 2 and places[1] - places[0] == 1
        return len(places) == 1 or (swapped and sorted(one) == sorted(other))
    short, long = sorted((one, other), key=len)
    at = next(i for i, (a, b) in enumerate(zip_longest(short, long)) if a != b)
    return long[at + 1 :] == short[at:]


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
        quiet = quiet_s(self._database)
        if not self._policy.due(waiting=waiting, quiet_s=quiet, before=before, now=now):
            return []
        return teach(self._store, self._database, name=f"corrections-{now:%Y%m%d-%H%M%S}")


def quiet_s(database: Database) -> float:
    """Return the seconds since the last answer; infinity if there was none."""
    with database.begin() as connection:
        last = connection.execute(select(func.max(receipts.c.created_at))).scalar()
    return float("inf") if last is None else time.time() - last
