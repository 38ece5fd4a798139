"""The journal of a run, and what a result says it was made with."""

import json
import subprocess

import pytest
import torch

from lcia.learner import Journal, read_journal
from lcia.learner import outcome as module
from lcia.learner.outcome import environment


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr("lcia.store.journal.time.time", lambda: now[0])
    return now


def test_pauses_between_attempts_do_not_count(tmp_path, clock):
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    for time, step in ((10, 1), (12, 2), (15, 3)):
        clock[0] = time
        first.write("step", step=step)
    assert first.seconds() == 5
    clock[0] = 1000  # killed after step 3, resumed much later from the checkpoint of step 2
    again = Journal(path)
    again.rewind(2)
    clock[0] = 1004
    again.write("step", step=3)
    assert again.seconds() == 2 + 4
    events = [(e["event"], e.get("step")) for e in again.events()]
    assert events == [("step", 1), ("step", 2), ("resumed", None), ("step", 3)]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"event": "a", "time": 1.0}) + '\n{"event": "b", "ti')
    assert [event["event"] for event in Journal(path).events()] == ["a", "resumed"]


def test_an_empty_journal_took_no_time(tmp_path):
    assert Journal(tmp_path / "none.jsonl").seconds() == 0
    assert list(read_journal(tmp_path / "none.jsonl")) == []
    assert Journal(None).events() == []


@pytest.fixture(autouse=True)
def afresh():
    module._environment.cache_clear()
    yield
    module._environment.cache_clear()


def git(folder, *words):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_it_names_machine_and_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)  # as where lcia is installed
    found = environment()
    version, _, _ = torch.__version__.partition("+")  # a wheel of the index does not name its build
    assert found["torch"] in (version, torch.__version__)
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert "revision" not in found


def test_a_checkout_says_its_revision_and_whether_files_differ(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = environment()["revision"]
    assert len(clean) >= 7
    (tmp_path / "file").write_text("two")
    module._environment.cache_clear()
    assert environment()["revision"] == f"{clean}-dirty"
