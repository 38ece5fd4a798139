"""From an answer to its correction to a version that knows after."""

import json

import httpx
import openai
import pytest
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.errors import DataError
from lcia.learner import Store
from lcia.live.database import Database
from lcia.live.inbox import Inbox, Receipts
from live_server import server, wait_for
from serving_server import COLOUR, make_store

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
        run("learn", root, "--name", "corrected", "--epochs", 60)
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
