"""Corrections that are learned without anybody asking: ``lcia serve --learn-when``."""

from datetime import datetime, time, timedelta

import pytest

from lcia.errors import ConfigError
from lcia.live.database import Database, receipts
from lcia.live.feedback.teaching import Follower, Policy
from lcia.live.inbox import Inbox, Receipts
from serving_server import COLOUR, make_store

NOON = datetime(2026, 5, 4, 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("policy") / "assistant", tiny_model)


@pytest.fixture
def inbox(store, tmp_path):
    """The inbox of a database of its own."""
    database = Database(store.root, f"sqlite:///{tmp_path / 'own.db'}")
    counts = {"prompt_tokens": 3, "answer_tokens": 1, "finish_reason": "stop"}
    where = {"model": "assistant", "version": 2, "group": "g1", "reason": "routed"}
    Receipts(database).keep([{"id": "a1", "sampling": {}, **where, **counts}])
    yield Inbox(database)
    database.close()


def correct(inbox, number, answer="x"):
    """Correct one answer; return the entry's number."""
    prompt = [{"role": "user", "content": COLOUR.replace("7", str(number))}]
    return inbox.add("a1", correction=answer, prompt=prompt)["number"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("samples: 50", Policy(samples=50)),
        ("idle_s:60", Policy(idle_s=60)),
        ("nightly 02:00", Policy(nightly=time(2))),
        (' nightly: "23:59" ', Policy(nightly=time(23, 59))),
        ("manual", None),
    ],
)
def test_what_learn_when_says_is_read(text, expected):
    assert Policy.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "samples: 0", "samples", "idle_s: -1", "nightly 24:00", "nightly", "often", "2:00"]
)
def test_what_it_does_not_know_is_refused_with_what_it_knows(text):
    with pytest.raises(
        ConfigError, match=r"--learn-when: found .*; expected manual, 'samples: 50'"
    ):
        Policy.parse(text)


@pytest.mark.parametrize(
    ("policy", "known", "is_due"),
    [
        (Policy(samples=3), {"waiting": 2}, False),
        (Policy(samples=3), {"waiting": 3}, True),
        (Policy(samples=3), {"waiting": 4, "quiet_s": 0.0}, True),
        (Policy(idle_s=60), {"waiting": 1, "quiet_s": 59.0}, False),
        (Policy(idle_s=60), {"waiting": 1, "quiet_s": 60.0}, True),
        (Policy(idle_s=60), {"waiting": 0, "quiet_s": 600.0}, False),
        (Policy(nightly=time(12)), {"waiting": 1}, True),
        (Policy(nightly=time(12)), {"waiting": 0}, False),
        (Policy(nightly=time(11)), {"waiting": 1}, False),
        (Policy(nightly=time(13)), {"waiting": 1}, False),
        (Policy(nightly=time(13)), {"waiting": 1, "before": NOON - timedelta(hours=22)}, False),
        (Policy(nightly=time(13)), {"waiting": 1, "before": NOON - timedelta(hours=24)}, True),
    ],
)
def test_it_is_due_when_it_was_asked_for(policy, known, is_due):
    asked = {"quiet_s": 0.0, "before": NOON - timedelta(seconds=5), "now": NOON, **known}
    assert policy.due(**asked) is is_due


def test_as_many_corrections_as_asked_for_become_a_job_once(store, inbox):
    follower = Follower(Policy(samples=2), store, inbox.database)
    now = datetime.now()
    numbers = [correct(inbox, 50), correct(inbox, 51)]
    inbox.decide(numbers[:1], "accepted")
    assert follower.look(now=now + timedelta(seconds=10)) == []
    inbox.decide(numbers[1:], "accepted")
    assert follower.look(now=now + timedelta(seconds=11)) == []  # it looks every five seconds
    (job,) = follower.look(now=now + timedelta(seconds=20))
    assert job["task"].startswith("corrections-")
    assert [(e["state"], e["job"]) for e in inbox.listed()] == [("taught", job["id"])] * 2
    assert follower.look(now=now + timedelta(seconds=30)) == []


def test_nothing_is_learned_while_somebody_asks(store, inbox):
    follower = Follower(Policy(idle_s=60), store, inbox.database)
    now = datetime.now()
    inbox.decide([correct(inbox, 50)], "accepted")
    assert follower.look(now=now + timedelta(seconds=10)) == []  # the receipt is new
    with inbox.database.begin() as connection:
        connection.execute(receipts.update().values(created_at=int(now.timestamp()) - 61))
    assert len(follower.look(now=now + timedelta(seconds=20))) == 1


def test_what_is_accepted_by_itself_is_not_what_a_person_should_look_at(store, inbox):
    for number, answer in ((50, "x"), (51, "y"), (51, "z")):  # the last two contradict
        correct(inbox, number, answer)
    now = datetime.now()
    assert (
        Follower(Policy(samples=1), store, inbox.database).look(now=now + timedelta(seconds=9))
        == []
    )
    follower = Follower(Policy(samples=1, accept=True), store, inbox.database)
    (job,) = follower.look(now=now + timedelta(seconds=20))
    states = [(entry["state"], entry["job"]) for entry in inbox.listed()]
    assert states == [("taught", job["id"]), ("new", None), ("new", None)]
