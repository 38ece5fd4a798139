"""Forgetting an answer, or all that came with a key, wherever it was kept."""

import sqlite3

import pytest
from typer.testing import CliRunner

from conftest import make_task
from lcia.cli.main import app
from lcia.errors import DataError
from lcia.learner import ContinualLearner, Store
from lcia.live.data_files import DataFiles
from lcia.live.database import SCHEMA, Database, DatabaseSchemaError
from lcia.live.feedback.forgetting import forget
from lcia.live.feedback.teaching import teach
from lcia.live.inbox import Inbox, Receipts
from lcia.live.jobs import Jobs
from lcia.live.worker import Worker
from lcia.store import audit
from lcia.store.prune import prune
from lcia.store.samples import REMEMBERED, kept_with
from serving_server import COLOUR, make_store

SECRET = "my colour is a secret, say nothing"
KEPT = ("memory.jsonl", "validation.jsonl", "samples.jsonl", "predictions.jsonl", "codebook.json")


def lcia(*words):
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).output


def receipt(answer, text, *, key=None):
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
    root = make_store(folder, tiny_model, evaluation={"samples": request.param}).root
    database = Database(root)
    texts = {"a1": COLOUR, "a2": f"{COLOUR.partition('7')[0]}{SECRET} 1", "a3": SECRET}
    keys = {"a1": "otto", "a2": "anna", "a3": "anna"}
    Receipts(database).keep([receipt(a, t, key=keys[a]) for a, t in texts.items()])
    inbox = Inbox(database)
    for answer in texts:
        with audit.acting(f"key {keys[answer]}"):
            inbox.add(answer, correction="x")
    inbox.decide(None, "accepted")
    teach(Store.open(root), database, name="corrected", hyperparameters={"n_epochs": 2})
    Worker(root, database).run(until_empty=True)
    return root


@pytest.fixture
def root(taught, tmp_path):
    import shutil

    return shutil.copytree(taught, tmp_path / "assistant")


def holding(root, text, *, version=None):
    """Files of the assistant that hold a text, all of them or those of one version."""
    store = Store.open(root)
    found = sorted(p for name in KEPT for p in root.rglob(name) if text in p.read_text())
    if version is not None:
        own = store.version(version).manifest["files"]
        found = [p for p in found if p.relative_to(root).as_posix() in own]
    return [p.relative_to(root).as_posix() for p in found]


def test_a_key_is_forgotten_in_the_database_and_in_a_new_version(root):
    before = Store.open(root).current_number
    assert holding(root, SECRET, version=before)
    database, store = Database(root), Store.open(root)
    done = forget(store, database, key="anna")
    assert done.version == store.current_number > before
    assert (done.receipts, done.entries) == (2, 2)
    assert holding(root, SECRET, version=done.version) == []
    assert before in done.remains
    assert done.learned
    remembered = [s.prompt for s, _ in kept_with(store.current.adapters["g1"][1], REMEMBERED)]
    assert COLOUR in remembered
    assert [e["receipt"] for e in Inbox(database).listed()] == ["a1"]
    for file in DataFiles(database).listed(limit=100, newest=True)[0]:
        assert SECRET.encode() not in DataFiles(database).content(file["id"])
    assert store.verify() == []
    assert audit.entries(root)[-1]["what"] == "forgotten"
    prune(store, keep_last=1)
    assert holding(root, SECRET) == []
    assert Store.open(root).verify() == []
    with pytest.raises(DataError, match="Nothing is known of the key 'anna'"):
        lcia("forget", root, "--key", "anna")
    ContinualLearner(Store.open(root)).learn(make_task("more", "Weigh the fruit.", {"fig": "f"}))


def test_an_answer_is_forgotten_and_the_others_stay(root):
    said = lcia("forget", root, "--receipt", "a1")
    assert "1 receipts, 1 entries of the inbox are gone." in said
    assert f"lcia prune {root} --keep-last 1 --yes" in said
    assert [e["receipt"] for e in Inbox(Database(root)).listed()] == ["a2", "a3"]
    current = Store.open(root).current_number
    assert holding(root, SECRET, version=current)
    assert not [p for p in holding(root, "green 7", version=current) if "codebook" not in p]


def test_what_a_job_is_about_to_learn_is_not_forgotten_halfway(root):
    database = Database(root)
    inbox = Inbox(database)
    inbox.add("a1", correction="y")
    inbox.decide(None, "accepted")
    (job,) = teach(Store.open(root), database, name="again")
    with pytest.raises(DataError, match=f"Job {job['id']} learns from it"):
        lcia("forget", root, "--receipt", "a1")
    Jobs(database).cancel(job["id"])
    lcia("forget", root, "--receipt", "a1")


def test_texts_leave_receipts_and_inbox_when_they_are_old(root):
    database = Database(root)
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
    Receipts(database).keep([receipt("a1", "text", key="anna")])
    assert Receipts(database).get("a1")["key"] == "anna"
    database.close()
    with sqlite3.connect(path) as later:
        later.execute("UPDATE about SET value = ?", (SCHEMA + 1,))
    with pytest.raises(DatabaseSchemaError, match=f"has schema {SCHEMA + 1}; this lcia reads up"):
        Database(tmp_path)
