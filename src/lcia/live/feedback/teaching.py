"""From accepted corrections to jobs: what is alike, and which group learns it."""

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from lcia.data import Message
from lcia.grouping import Router, told
from lcia.learner import Store
from lcia.live.database import Database
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
