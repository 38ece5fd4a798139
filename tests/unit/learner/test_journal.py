"""The journal of a run: events in order, time without the pauses between attempts."""

import json

import pytest

from lcia.learner import Journal, read_journal


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr("lcia.learner.journal.time.time", lambda: now[0])
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
