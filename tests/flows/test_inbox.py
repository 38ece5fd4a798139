"""From an answer to its correction to a version that knows after."""

import json
import re

import httpx
import openai
import pytest
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.errors import DataError
from lcia.learner import Store
from lcia.live.database import Database
from lcia.live.feedback.teaching import marked
from lcia.live.inbox import Inbox, Receipts
from live_server import server, wait_for
from serving_server import COLOUR, NUMBER, make_store

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
