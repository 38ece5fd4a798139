"""Releases under traffic: who answers, when a new version is taken back, and who may say so."""

import random
import shutil
import time
from collections import Counter

import httpx
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from conftest import make_task
from lcia.cli.main import app
from lcia.config import AssistantConfig
from lcia.errors import ConfigError, GateError
from lcia.learner import ContinualLearner, Store
from lcia.live.data_files import DataFiles
from lcia.live.database import Database, canaries
from lcia.live.inbox import Inbox
from lcia.live.jobs import Jobs
from lcia.live.orders import order
from lcia.live.releases.canary import Answered, Canaries, CanaryConfig, worse
from lcia.live.releases.listing import Releases
from lcia.live.releases.serving import Trial
from lcia.live.serving import LiveConfig, build_live_app
from lcia.live.worker import Worker
from lcia.serving.live import LiveStore
from serving_server import COLOUR, SHADES, data, make_service, make_versions, running

CONFIG = CanaryConfig(share=0.25, answers=40)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return make_versions(tmp_path_factory.mktemp("made") / "assistant", tiny_model)


@pytest.fixture
def store(made, tmp_path):
    """Three versions, of which the second is current."""
    shutil.copytree(made.root, tmp_path / "assistant")
    found = Store.open(tmp_path / "assistant")
    found.roll_back(2)
    return found


@pytest.fixture
def database(store):
    found = Database(store.root)
    yield found
    found.close()


@pytest.fixture
def live(store, database):
    """A server's view of version 2, then of the release of version 3."""
    random.seed(3)
    found = LiveStore(store.root)
    Trial(found, Canaries(database, CONFIG))
    release(found)
    return found


def release(live):
    live.store.roll_back(3)
    assert live.refresh()
    live.watch()


def drawn(live, model="assistant", times=400):
    return Counter(live.named(model)[0].number for _ in range(times))


def count(database, version, *, texts, start=0):
    answers = [
        Answered(id=f"{version}-{start + i}", version=version, text=text, finish_reason="stop")
        for i, text in enumerate(texts)
    ]
    Canaries(database, CONFIG).count(answers)


def test_a_share_of_the_answers_is_the_new_versions_and_pinned_names_keep_theirs(live):
    shares = drawn(live)
    assert 60 < shares[3] < 140
    assert shares[2] == 400 - shares[3]
    assert set(drawn(live, "g1")) == {2, 3}
    assert set(drawn(live, "assistant@3", 20)) == {3}
    assert set(drawn(live, "assistant@2", 20)) == {2}
    assert set(drawn(live, "g1@0003", 20)) == {3}  # of this version alone


def test_a_version_that_answers_as_well_gets_everything(live, database):
    count(database, 2, texts=["a"] * 118 + [""] * 2)
    count(database, 3, texts=["a"] * 39)
    live.watch()
    assert set(drawn(live)) == {2, 3}
    count(database, 3, texts=[""], start=39)
    live.watch()
    assert set(drawn(live)) == {3}
    found = Canaries(database).of(3)
    assert found["state"] == "promoted"
    assert found["counts"]["version"] == {
        "answers": 40,
        "failed": 0,
        "refused": 1,
        "thumbs_down": 0,
    }


@pytest.mark.parametrize("bad", [None, "", "I'm sorry, but I can't help with that."])
def test_a_version_whose_answers_are_worse_is_taken_back(bad, live, database):
    count(database, 2, texts=["a"] * 30)
    count(database, 3, texts=[bad] * 10)
    live.watch()
    assert set(drawn(live)) == {2}
    assert live.store.current_number == 2
    assert live.refresh()
    live.watch()
    assert set(drawn(live)) == {2}
    found = Canaries(database).of(3)
    assert found["state"] == "rolled_back"
    assert "after 10 answers 10 of 10" in found["why"]


def test_thumbs_down_take_a_version_back(live, database):
    from lcia.live.inbox import Receipts

    count(database, 2, texts=["a"] * 30)
    count(database, 3, texts=["a"] * 10)
    counts = {"prompt_tokens": 3, "answer_tokens": 1, "finish_reason": "stop"}
    where = {"model": "assistant", "version": 3, "group": "g1", "reason": "reached"}
    Receipts(database).keep([{"id": f"3-{i}", "sampling": {}, **where, **counts} for i in range(9)])
    for i in range(9):
        Inbox(database).add(f"3-{i}", rating=-1)
    live.watch()
    assert set(drawn(live)) == {2}
    assert "got a thumb down" in Canaries(database).of(3)["why"]


def test_a_version_that_is_no_worse_is_rarely_taken_back():
    dice = random.Random(5)
    taken = 0
    for _ in range(400):
        counts = {}
        for side, answers in (("version", 200), ("before", 1800)):
            measures = ("failed", "refused", "thumbs_down")
            rates = zip(measures, (0.01, 0.1, 0.05), strict=True)
            hits = {m: sum(dice.random() < rate for _ in range(answers)) for m, rate in rates}
            counts[side] = {"answers": answers, **hits}
        taken += worse(counts, alpha=0.05 / 12) is not None
    assert taken <= 400 * 0.05 / 4 + 8


def test_while_somebody_learns_the_traffic_moves_at_once_and_the_store_later(live, database):
    count(database, 2, texts=["a"] * 30)
    count(database, 3, texts=[""] * 10)
    with live.store.writing():
        live.watch()
        assert set(drawn(live)) == {2}
        assert live.store.current_number == 3
    worker = Worker(live.store.root, database, poll_s=0.01)
    worker.run(until_empty=True)
    assert live.store.current_number == 2
    assert live.refresh()
    assert set(drawn(live)) == {2}


@pytest.mark.parametrize(
    ("texts", "now", "why"),
    [
        (["a"] * 3, 3, "3 answers in 24 hours, none of the rates is higher"),
        ([], 3, "no answers in 24 hours, none of the rates is higher"),
        ([""] * 3, 2, "after 3 answers 3 of 3 were refusals"),
    ],
    ids=["few answers", "none", "few and bad"],
)
def test_a_canary_that_is_hardly_asked_ends_by_itself(texts, now, why, live, database):
    count(database, 2, texts=["a"] * 30)
    count(database, 3, texts=texts)
    for hours in (23.9, 24):
        live.watch()
        assert set(drawn(live)) == {2, 3}, hours
        began = int(time.time() - 3600 * hours)
        with database.begin() as connection:
            connection.execute(update(canaries).values(created_at=began))
    live.watch()
    assert set(drawn(live)) == {now}
    assert Canaries(database).of(3)["why"].startswith(why)


def test_a_server_that_is_started_again_goes_on_with_the_canary(live, database):
    again = LiveStore(live.store.root)
    Trial(again, Canaries(database, CONFIG))
    assert set(drawn(again)) == {2, 3}
    count(database, 3, texts=["a"] * 40)
    again.watch()
    once_more = LiveStore(live.store.root)
    Trial(once_more, Canaries(database, CONFIG))
    assert set(drawn(once_more)) == {3}


def test_a_release_while_the_server_was_down_is_tried_too(store, database):
    Trial(LiveStore(store.root), Canaries(database, CONFIG))
    store.roll_back(3)
    found = LiveStore(store.root)
    Trial(found, Canaries(database, CONFIG))
    assert set(drawn(found)) == {2, 3}


def test_a_version_that_the_server_has_not_seen_yet_is_promoted(store, database):
    service = make_service(store, poll_s=3600)
    config = LiveConfig(learn=True, worker=False, canary=CanaryConfig(share=0.5, answers=1000))
    built = build_live_app(service, config, database)
    with running(built, service.config.access) as url:
        store.roll_back(3)
        assert service.live.current.number == 2
        promoted = httpx.post(f"{url}/v1/lcia/releases/3/promote").json()
        assert promoted["state"] == "current"
        assert set(drawn(service.live)) == {3}
        assert promoted["canary"]["state"] == "promoted"


def test_going_back_by_hand_ends_a_canary(live, database):
    Releases(live.store, Canaries(database)).roll_back(1)
    assert live.refresh()
    live.watch()
    assert set(drawn(live)) == {1}
    assert Canaries(database).of(3)["state"] == "rolled_back"


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nobody_to_compare_with_is_refused(share):
    with pytest.raises(ConfigError, match="--canary"):
        CanaryConfig(share=share)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_a_canary_without_time_is_refused(hours):
    with pytest.raises(ConfigError, match="--canary-hours: found"):
        CanaryConfig(hours=hours)


@pytest.fixture
def candidate(store):
    """The number of a candidate that the gate refused, on version 2."""
    learner = ContinualLearner(store)
    learner.config = learner.config.model_copy(
        update={"gate": learner.config.gate.model_copy(update={"max_drop": 0.0})}
    )
    matrix = store.current.matrix()
    raised = matrix.with_scores(matrix.learned, dict.fromkeys(matrix.tasks, 99.0))
    raised.save(store.current.path / "matrix.json")
    with pytest.raises(GateError):
        learner.learn(make_task("marks", "Write this mark.", {"dot": ".", "comma": ","}))
    matrix.save(store.current.path / "matrix.json")
    return store.next_number() - 1


def test_releases_are_listed_shown_promoted_and_rolled_back_over_http(store, database, candidate):
    service = make_service(store)
    config = LiveConfig(learn=True, worker=False, canary=CanaryConfig(share=0.5, answers=1000))
    built = build_live_app(service, config, database)
    with running(built, service.config.access) as url:
        base = f"{url}/v1/lcia/releases"
        listed = httpx.get(base).json()
        assert {one["version"]: one["state"] for one in listed["data"]} == {
            1: "earlier",
            2: "current",
            3: "earlier",
            candidate: "refused",
        }
        shown = httpx.get(f"{base}/{candidate}").json()
        assert shown["state"] == "refused"
        assert [check["passed"] for check in shown["checks"]][:1] == [False]
        html = httpx.get(f"{base}/{candidate}", headers={"Accept": "text/html"}).text
        assert "<h2>Gate</h2>" in html
        assert "<strong>fails</strong>" in html
        assert httpx.get(f"{base}/99").status_code == 404
        assert httpx.get(f"{base}/x").status_code == 404
        assert httpx.post(f"{base}/{candidate}/promote").status_code == 400
        assert httpx.post(f"{base}/2/promote").status_code == 400
        assert httpx.post(f"{base}/2/rollback").status_code == 400
        with store.writing():
            assert httpx.post(f"{base}/1/rollback").status_code == 409
        elsewhere = {"Origin": "http://elsewhere"}
        assert httpx.post(f"{base}/1/rollback", headers=elsewhere).status_code == 403
        said = {"force": True, "reason": "the scores are made up"}
        done = httpx.post(f"{base}/{candidate}/promote", json=said).json()
        assert done["reason"] == "the scores are made up"
        assert done["state"] in ("current", "canary")
        assert service.live.current.number == candidate
        asked = {"model": "assistant", "messages": [{"role": "user", "content": COLOUR}]}
        asked["max_tokens"] = 2
        answers = [httpx.post(f"{url}/v1/chat/completions", json=asked) for _ in range(24)]
        by = Counter(int(a.headers["x-lcia-version"]) for a in answers)
        assert set(by) == {2, candidate}
        for answer in answers:
            kept = httpx.get(f"{url}/v1/lcia/receipts/{answer.json()['id']}").json()
            assert kept["version"] == int(answer.headers["x-lcia-version"])
        canary = httpx.get(f"{base}/{candidate}").json()["canary"]
        assert canary["counts"]["version"]["answers"] == by[candidate]
        assert canary["counts"]["before"]["answers"] == by[2]
        assert httpx.post(f"{base}/{candidate}/promote").json()["state"] == "current"
        assert set(drawn(service.live)) == {candidate}  # not only at the next look
        assert httpx.post(f"{base}/1/rollback", json={"reason": "test"}).json()["version"] == 1
        assert service.live.current.number == 1
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked)
        assert answer.headers["x-lcia-version"] == "1"
    assert store.verify() == []


def test_the_command_line_shows_and_releases_what_was_refused(store, candidate):
    def lcia(*words):
        done = CliRunner().invoke(app, ["releases", *map(str, words)], catch_exceptions=False)
        return " ".join(done.output.split())  # lines break where a path is long

    listed = lcia("list", store.root)
    assert "refused" in listed
    shown = lcia("show", store.root, candidate)
    assert "fails: task" in shown
    with pytest.raises(ConfigError, match="--force --reason"):
        lcia("promote", store.root, candidate)
    told = lcia("promote", store.root, candidate, "--force", "--reason", "as agreed")
    assert f"release {candidate} is current" in told
    assert Store.open(store.root).current.manifest["released"]["reason"] == "as agreed"
    assert "release 2 is current" in lcia("rollback", store.root, 2)
    assert store.verify() == []


def queue(root, database, name):
    """Order a job that teaches shades of a colour; return its id."""
    words = {f"{word}{name}": letter for word, letter in SHADES.items()}
    file = DataFiles(database).add(f"{name}.jsonl", data(words, name=name))
    fields = order(Store.open(root), task=name, hyperparameters={"n_epochs": 4})
    return Jobs(database).create(**fields, training_file=file["id"])["id"]


def test_a_job_on_top_of_a_version_that_is_taken_back_begins_anew(live, database, monkeypatch):
    job = queue(live.store.root, database, "more")
    worker = Worker(live.store.root, database, poll_s=0.01)
    step = worker.jobs.step

    def turn_bad(*args, **told):
        step(*args, **told)
        monkeypatch.undo()
        count(database, 2, texts=["a"] * 30)
        count(database, 3, texts=[""] * 10)
        live.watch()
        assert live.store.current_number == 3  # the worker holds the right to change it

    monkeypatch.setattr(worker.jobs, "step", turn_bad)
    worker.run(until_empty=True)
    ended = worker.jobs.get(job)
    assert ended["status"] == "succeeded"
    assert Store.open(live.store.root).version(ended["version"]).manifest["parent"] == 2
    told = [event["message"] for event in worker.jobs.events(job, after=None, limit=100)[0]]
    assert "The version it builds on is taken back; it begins anew" in told


def test_a_job_that_the_gate_refuses_is_a_release_that_somebody_may_promote(tiny_model, tmp_path):
    gate = {"max_kl": 0.0, "max_rise": 100.0}
    training = {"max_steps": 2, "learning_rate": 1e-3, "save_steps": 100}
    config = AssistantConfig(model=str(tiny_model), dtype="float32", gate=gate, training=training)
    learner = ContinualLearner.create(tmp_path / "assistant", config)
    learner.learn(make_task("colours", "Say the letter of the colour.", {"red": "r"}))
    database = Database(learner.store.root)
    job = queue(learner.store.root, database, "shades")
    Worker(learner.store.root, database, poll_s=0.01).run(until_empty=True)
    ended = Jobs(database).get(job)
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "gate_refused"
    assert "KL on untaught prompts" in ended["error"]["message"]
    assert learner.store.current_number == 1
    releases = Releases(learner.store, Canaries(database))
    found = releases.get(2)
    assert (found["state"], found["task"]) == ("refused", "shades")
    assert {check["check"] for check in found["checks"]} >= {"earlier_tasks", "general"}
    assert releases.promote(2, force=True, reason="as agreed")["state"] == "current"
    database.close()
