"""From an answer to its correction, to a version that knows after, and to one that forgot again."""

import json
import re
import sqlite3
from datetime import datetime, time, timedelta

import httpx
import openai
import pytest
from typer.testing import CliRunner

from conftest import make_task
from lcia.cli.main import app
from lcia.errors import ConfigError, DataError
from lcia.learner import ContinualLearner, Store
from lcia.live.data_files import DataFiles
from lcia.live.database import SCHEMA, Database, DatabaseSchemaError, receipts
from lcia.live.feedback.forgetting import forget
from lcia.live.feedback.teaching import Follower, Policy, marked, teach
from lcia.live.inbox import Inbox, Receipts
from lcia.live.jobs import Jobs
from lcia.live.worker import Worker
from lcia.store import audit
from lcia.store.prune import prune
from lcia.store.samples import REMEMBERED, kept_with
from serving_server import COLOUR, NUMBER, make_store, server, wait_for

TRAINING = {"max_steps": 2, "learning_rate": 1e-2, "save_steps": 100}


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_model):
    return make_store(
        tmp_path_factory.mktemp("inbox") / "assistant", tiny_model, training=TRAINING
    ).root


@pytest.fixture
def inbox(root, tmp_path):
    """An inbox with one answer, in a database of its own."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    database = Database(root, url)
    Receipts(database).keep([receipt("a1")])
    yield Inbox(database), lambda *words: run(*words, env={"LCIA_DATABASE": url})
    database.close()


def run(*words, env=None):
    """Run ``lcia inbox``; return what it prints."""
    done = CliRunner().invoke(app, ["inbox", *map(str, words)], env=env, catch_exceptions=False)
    return done.output


def receipt(answer):
    counts = {"prompt_tokens": 3, "answer_tokens": 1, "finish_reason": "stop"}
    where = {"model": "assistant", "version": 2, "group": "g1", "reason": "routed"}
    return {"id": answer, "sampling": {}, **where, **counts}


def test_a_correction_is_learned_by_the_next_version_with_its_provenance(root):
    asked = [{"role": "user", "content": COLOUR}]
    with server(root, "--learn") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask(**more):
            return client.chat.completions.create(
                model="assistant", messages=asked, max_tokens=4, temperature=0, **more
            )

        plain = ask()
        streamed = list(ask(stream=True))
        for answer in (plain.id, streamed[0].id):
            kept = httpx.get(f"{url}/v1/lcia/receipts/{answer}").json()
            assert (kept["id"], kept["version"], kept["group"]) == (answer, 2, "g1")
            assert kept["prompt"] is None
            assert kept["answer"] is None
            assert kept["answer_tokens"] >= 1
        wrong = plain.choices[0].message.content
        right = next(letter for letter in "xyz" if letter != wrong)
        said = {"id": plain.id, "rating": -1, "correction": right, "prompt": COLOUR}
        assert httpx.post(f"{url}/v1/feedback", json=said).json()["state"] == "new"
        said = {"id": streamed[0].id, "rating": 1}
        assert httpx.post(f"{url}/v1/feedback", json=said).status_code == 200

        database = Database(root)
        inbox = Inbox(database)
        entries = inbox.listed()
        assert [(e["rating"], e["correction"], e["version"]) for e in entries] == [
            (-1, right, 2),
            (1, None, 2),
        ]
        listed = run("list", root)
        assert "version 2, g1" in listed
        assert "2 new, 0 accepted, 0 rejected, 0 taught" in listed
        assert run("accept", root, "--all") == "1 accepted.\n"
        run("learn", root, "--name", "corrected")
        (taught,) = inbox.listed(state="taught")
        assert taught["number"] == 1
        job = client.fine_tuning.jobs.retrieve(taught["job"])
        line = json.loads(client.files.content(job.training_file).text)
        assert line["id"] == f"feedback-1:{plain.id}"
        ended = wait_for(client, job.id)
        assert ended.fine_tuned_model == "assistant@3"
        after = client.chat.completions.create(
            model="assistant@3", messages=asked, max_tokens=4, temperature=0
        )
        assert after.system_fingerprint == "lcia-version-3"
        assert after.choices[0].message.content == right
        with pytest.raises(DataError, match=f"Feedback 1 was taught by job {job.id}"):
            run("edit", root, 1, "--correction", "w")
        database.close()
    assert Store.open(root).verify() == []


def test_an_entry_without_its_prompt_is_corrected_with_it(root, inbox):
    box, lcia = inbox
    box.add("a1", rating=-1)
    with pytest.raises(DataError, match="has no correction"):
        lcia("accept", root, 1)
    with pytest.raises(DataError, match="Give it: --prompt"):
        lcia("edit", root, 1, "--correction", "g")
    lcia("edit", root, 1, "--correction", "g", "--prompt", COLOUR)
    assert lcia("accept", root, 1) == "1 accepted.\n"
    shown = lcia("show", root, 1)
    assert "correction: g" in shown
    assert "group: g1" in shown


def test_what_was_rejected_is_not_taught_and_the_remedy_works(root, inbox):
    box, lcia = inbox
    turns = [{"role": "user", "content": COLOUR}]
    for correction in ("a", "b"):
        box.add("a1", correction=correction, prompt=turns)
    assert lcia("reject", root, 1) == "1 rejected.\n"
    with pytest.raises(DataError, match="lcia inbox accept STORE --all"):
        lcia("learn", root)
    assert lcia("accept", root, "--all") == "1 accepted.\n"
    assert lcia("learn", root).startswith("Job ftjob-")
    assert [entry["state"] for entry in box.listed()] == ["rejected", "taught"]


def said(box, prompt, correction):
    return box.add("a1", correction=correction, prompt=[{"role": "user", "content": prompt}])


def test_what_says_the_same_or_the_opposite_is_shown_to_a_person(root, inbox):
    box, lcia = inbox
    said(box, "Where is my parcel?", "At the post office.")  # 1
    said(box, "where is my  parcel", "at the post office")  # 2: as 1
    said(box, "Where is my parcle?", "At home.")  # 3: not as 1 and 2
    said(box, "Say the letter of the colour.\n\ngreen 7", "x")  # 4
    said(box, "Say the letter of the colour.\n\ngreen 8", "y")  # 5: another question
    said(box, "Open the door.", "I cannot.")  # 6
    said(box, "Close the door.", "I can.")  # 7: another question
    marks = marked(box.listed())
    assert marks == {1: "contradicts 3", 2: "contradicts 3", 3: "contradicts 1"}
    assert "contradicts 3" in lcia("list", root)
    told = lcia("accept", root, "--all")
    assert told.startswith("4 accepted.\nTo look at: 1, 2, 3.")
    lcia("reject", root, 3)
    assert marked(box.listed()) == {2: "same as 1"}
    assert lcia("accept", root, 2) == "1 accepted.\n"


def test_each_group_learns_the_corrections_of_its_own_answers(root, inbox):
    box, lcia = inbox
    for number in range(3):
        said(box, COLOUR.replace("7", str(50 + number)), "x")
        said(box, NUMBER.replace("7", str(50 + number)), "9")
    lcia("accept", root, "--all")
    told = lcia("learn", root, "--name", "mixed")
    first, second = re.findall(r"Job (ftjob-\w+) learns mixed-g[12]\.", told)
    states = [(entry["state"], entry["job"]) for entry in box.listed()]
    assert states == 3 * [("taught", first), ("taught", second)]


NOON = datetime(2026, 5, 4, 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("policy") / "assistant", tiny_model)


@pytest.fixture
def own_inbox(store, tmp_path):
    """The own_inbox of a database of its own."""
    database = Database(store.root, f"sqlite:///{tmp_path / 'own.db'}")
    counts = {"prompt_tokens": 3, "answer_tokens": 1, "finish_reason": "stop"}
    where = {"model": "assistant", "version": 2, "group": "g1", "reason": "routed"}
    Receipts(database).keep([{"id": "a1", "sampling": {}, **where, **counts}])
    yield Inbox(database)
    database.close()


def correct(own_inbox, number, answer="x"):
    """Correct one answer; return the entry's number."""
    prompt = [{"role": "user", "content": COLOUR.replace("7", str(number))}]
    return own_inbox.add("a1", correction=answer, prompt=prompt)["number"]


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


def test_as_many_corrections_as_asked_for_become_a_job_once(store, own_inbox):
    follower = Follower(Policy(samples=2), store, own_inbox.database)
    now = datetime.now()
    numbers = [correct(own_inbox, 50), correct(own_inbox, 51)]
    own_inbox.decide(numbers[:1], "accepted")
    assert follower.look(now=now + timedelta(seconds=10)) == []
    own_inbox.decide(numbers[1:], "accepted")
    assert follower.look(now=now + timedelta(seconds=11)) == []  # it looks every five seconds
    (job,) = follower.look(now=now + timedelta(seconds=20))
    assert job["task"].startswith("corrections-")
    assert [(e["state"], e["job"]) for e in own_inbox.listed()] == [("taught", job["id"])] * 2
    assert follower.look(now=now + timedelta(seconds=30)) == []


def test_nothing_is_learned_while_somebody_asks(store, own_inbox):
    follower = Follower(Policy(idle_s=60), store, own_inbox.database)
    now = datetime.now()
    own_inbox.decide([correct(own_inbox, 50)], "accepted")
    assert follower.look(now=now + timedelta(seconds=10)) == []  # the receipt is new
    with own_inbox.database.begin() as connection:
        connection.execute(receipts.update().values(created_at=int(now.timestamp()) - 61))
    assert len(follower.look(now=now + timedelta(seconds=20))) == 1


def test_what_is_accepted_by_itself_is_not_what_a_person_should_look_at(store, own_inbox):
    for number, answer in ((50, "x"), (51, "y"), (51, "z")):  # the last two contradict
        correct(own_inbox, number, answer)
    now = datetime.now()
    assert (
        Follower(Policy(samples=1), store, own_inbox.database).look(now=now + timedelta(seconds=9))
        == []
    )
    follower = Follower(Policy(samples=1, accept=True), store, own_inbox.database)
    (job,) = follower.look(now=now + timedelta(seconds=20))
    states = [(entry["state"], entry["job"]) for entry in own_inbox.listed()]
    assert states == [("taught", job["id"]), ("new", None), ("new", None)]


SECRET = "my colour is a secret, say nothing"
KEPT = ("memory.jsonl", "validation.jsonl", "samples.jsonl", "predictions.jsonl", "codebook.json")


def lcia(*words):
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).output


def receipt_of(answer, text, *, key=None):
    return {
        "id": answer,
        "model": "assistant",
        "version": 2,
        "group": "g1",
        "reason": "reached",
        "sampling": {},
        "prompt_tokens": 3,
        "answer_tokens": 1,
        "prompt": [{"role": "user", "content": text}],
        "answer": "?",
        "key": key,
    }


@pytest.fixture(scope="module", params=[None, 2], ids=["all", "two held-out samples a version"])
def taught(request, tmp_path_factory, tiny_model):
    """An assistant that learned three corrections, two of them of one key."""
    folder = tmp_path_factory.mktemp("forget") / "assistant"
    forgetful = make_store(folder, tiny_model, evaluation={"samples": request.param}).root
    database = Database(forgetful)
    texts = {"a1": COLOUR, "a2": f"{COLOUR.partition('7')[0]}{SECRET} 1", "a3": SECRET}
    keys = {"a1": "otto", "a2": "anna", "a3": "anna"}
    Receipts(database).keep([receipt_of(a, t, key=keys[a]) for a, t in texts.items()])
    inbox = Inbox(database)
    for answer in texts:
        with audit.acting(f"key {keys[answer]}"):
            inbox.add(answer, correction="x")
    inbox.decide(None, "accepted")
    teach(Store.open(forgetful), database, name="corrected", hyperparameters={"n_epochs": 2})
    Worker(forgetful, database).run(until_empty=True)
    return forgetful


@pytest.fixture
def forgetful(taught, tmp_path):
    import shutil

    return shutil.copytree(taught, tmp_path / "assistant")


def holding(forgetful, text, *, version=None):
    """Files of the assistant that hold a text, all of them or those of one version."""
    store = Store.open(forgetful)
    found = sorted(p for name in KEPT for p in forgetful.rglob(name) if text in p.read_text())
    if version is not None:
        own = store.version(version).manifest["files"]
        found = [p for p in found if p.relative_to(forgetful).as_posix() in own]
    return [p.relative_to(forgetful).as_posix() for p in found]


def test_a_key_is_forgotten_in_the_database_and_in_a_new_version(forgetful):
    before = Store.open(forgetful).current_number
    assert holding(forgetful, SECRET, version=before)
    database, store = Database(forgetful), Store.open(forgetful)
    done = forget(store, database, key="anna")
    assert done.version == store.current_number > before
    assert (done.receipts, done.entries) == (2, 2)
    assert holding(forgetful, SECRET, version=done.version) == []
    assert before in done.remains
    assert done.learned
    remembered = [s.prompt for s, _ in kept_with(store.current.adapters["g1"][1], REMEMBERED)]
    assert COLOUR in remembered
    assert [e["receipt"] for e in Inbox(database).listed()] == ["a1"]
    for file in DataFiles(database).listed(limit=100, newest=True)[0]:
        assert SECRET.encode() not in DataFiles(database).content(file["id"])
    assert store.verify() == []
    assert audit.entries(forgetful)[-1]["what"] == "forgotten"
    prune(store, keep_last=1)
    assert holding(forgetful, SECRET) == []
    assert Store.open(forgetful).verify() == []
    with pytest.raises(DataError, match="Nothing is known of the key 'anna'"):
        lcia("forget", forgetful, "--key", "anna")
    ContinualLearner(Store.open(forgetful)).learn(
        make_task("more", "Weigh the fruit.", {"fig": "f"})
    )


def test_an_answer_is_forgotten_and_the_others_stay(forgetful):
    said = lcia("forget", forgetful, "--receipt", "a1")
    assert "1 receipts, 1 entries of the inbox are gone." in said
    assert f"lcia prune {forgetful} --keep-last 1 --yes" in said
    assert [e["receipt"] for e in Inbox(Database(forgetful)).listed()] == ["a2", "a3"]
    current = Store.open(forgetful).current_number
    assert holding(forgetful, SECRET, version=current)
    assert not [p for p in holding(forgetful, "green 7", version=current) if "codebook" not in p]


def test_what_a_job_is_about_to_learn_is_not_forgotten_halfway(forgetful):
    database = Database(forgetful)
    inbox = Inbox(database)
    inbox.add("a1", correction="y")
    inbox.decide(None, "accepted")
    (job,) = teach(Store.open(forgetful), database, name="again")
    with pytest.raises(DataError, match=f"Job {job['id']} learns from it"):
        lcia("forget", forgetful, "--receipt", "a1")
    Jobs(database).cancel(job["id"])
    lcia("forget", forgetful, "--receipt", "a1")


def test_texts_leave_receipts_and_inbox_when_they_are_old(forgetful):
    database = Database(forgetful)
    Inbox(database).add("a1", correction="y")
    Receipts(database).drop_texts(older_than_s=60)
    assert Receipts(database).get("a1")["answer"] == "?"
    Receipts(database).drop_texts(older_than_s=-60)
    found = Receipts(database).get("a1")
    assert (found["prompt"], found["answer"], found["version"]) == (None, None, 2)
    entries = Inbox(database).listed()
    assert [(e["state"], e["prompt"] is None) for e in entries][-1] == ("new", True)


def test_a_database_from_before_is_brought_up_and_one_from_later_refused(tmp_path):
    path = tmp_path / "assistant.db"
    Database(tmp_path).close()
    with sqlite3.connect(path) as old:
        old.execute("DROP TABLE about")
        for table in ("jobs", "receipts", "feedback"):
            old.execute(f"ALTER TABLE {table} DROP COLUMN key")
        old.execute("ALTER TABLE jobs ADD COLUMN key TEXT")  # killed after the first
    database = Database(tmp_path)
    Receipts(database).keep([receipt_of("a1", "text", key="anna")])
    assert Receipts(database).get("a1")["key"] == "anna"
    database.close()
    with sqlite3.connect(path) as later:
        later.execute("UPDATE about SET value = ?", (SCHEMA + 1,))
    with pytest.raises(DatabaseSchemaError, match=f"has schema {SCHEMA + 1}; this lcia reads up"):
        Database(tmp_path)
