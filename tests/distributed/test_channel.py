"""Processes meet, ask and end on their channel, without a process group."""

import subprocess
import sys
import threading
import time

import pytest
from tests.distributed.launching import MEETING

from lcia.distributed.processes import Piece, Work, share
from lcia.errors import TrainingError

CHANNEL = f"""{MEETING}
from lcia.errors import StoreError
channel = Channel.open(rank, 3, host="127.0.0.1", spread=spread)
"""
MEET = """
for turn in range(5):
    time.sleep(0.05 * ((rank + turn) % 3))
    assert channel.meet({"turn": turn} if rank == 0 else "not heard") == {"turn": turn}
assert channel.meet() is None
"""
ASK = """
if rank == 0:
    time.sleep(0.3)  # the others ask before anybody serves
    asked = []
    def handler(rank, message):
        asked.append(rank)
        return {"doubled": 2 * message["number"]} if len(asked) > 4 else None
    channel.serve("doubling", handler)
assert channel.request("doubling", number=rank + 20) == {"doubled": 2 * rank + 40}
channel.meet()
"""
FAIL = """
def handler(rank, message):
    if rank == 2:
        {raised}
if rank == 0:
    channel.serve("work", handler)
channel.request("work")
"""


def start(code, folder):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CHANNEL + code, str(rank), str(folder / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    begun = time.monotonic()
    errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert time.monotonic() - begun < 30
    return [rank.returncode for rank in ranks], errors


@pytest.mark.parametrize("code", [MEET, ASK])
def test_ranks_meet_and_ask_whoever_comes_first(code, tmp_path):
    codes, errors = start(code + "channel.close()\ntime.sleep(0.5)\n", tmp_path)
    assert (codes, errors) == ([0] * 3, [""] * 3)


LEAVE = """
import lcia.distributed.channel
lcia.distributed.channel.RETRY_S = 1.0  # the others ask, and pause before they ask again
time.sleep(2 if rank == 0 else 0)
channel.meet()
channel.close()
"""


def test_the_main_process_leaves_nobody_waiting_for_the_last_reply(tmp_path):
    codes, errors = start(LEAVE, tmp_path)
    assert (codes, errors) == ([0] * 3, [""] * 3)


@pytest.mark.parametrize(
    ("raised", "said", "code"),
    [
        ("raise StoreError('answers.jsonl: the disk is full.')", "answers.jsonl: the disk", 2),
        ("1 / 0", "ZeroDivisionError: division by zero", 1),
    ],
)
def test_an_error_while_the_main_process_serves_ends_all_with_one_line(
    raised, said, code, tmp_path
):
    codes, errors = start(FAIL.format(raised=raised), tmp_path)
    assert codes == [code] * 3
    assert errors[0].startswith(said)
    assert errors[1:] == ["", ""]


def pieces(**adapters):
    return [
        Piece(job=[name, i], needs=frozenset([name]), cost=100 - i)
        for name, number in adapters.items()
        for i in range(number)
    ]


def test_one_process_does_every_piece_once():
    kept, told = [], []
    work = Work(pieces(a=3, b=2), lambda job, result: kept.append((job, result)))
    share(lambda job: job[1] + 1, work, channel=None, after_each=lambda: told.append(len(kept)))
    assert sorted(kept) == [
        ([name, i], i + 1) for name, n in (("a", 3), ("b", 2)) for i in range(n)
    ]
    assert told == [1, 2, 3, 4, 5]


def test_no_work_is_done_at_once():
    share(lambda job: 1 / 0, Work([], lambda job, result: None), channel=None)


def test_each_rank_keeps_to_its_adapters_while_there_is_work_for_them():
    kept = []
    work = Work(pieces(a=4, b=4), lambda job, result: kept.append(job))
    done = {0: [], 1: []}
    replies = {rank: work.answer(rank, {}) for rank in done}
    for _ in range(4):
        for rank in done:
            job = replies[rank]["job"]
            done[rank].append(job[0])
            replies[rank] = work.answer(rank, {"result": None})
    assert [set(names) for names in done.values()] == [{"a"}, {"b"}]
    assert work.answer(0, {}) == work.answer(1, {}) == {"over": True}
    assert len(kept) == 8


def test_a_slow_rank_gets_less_and_the_last_piece_is_waited_for():
    kept = []
    work = Work(pieces(a=9), lambda job, result: kept.append(job))
    assert "job" in work.answer(1, {})  # slow
    reply = work.answer(0, {})
    while reply:
        reply = work.answer(0, {"result": None})
    assert len(kept) == 8
    assert work.answer(0, {"result": None}) is None, "a repeated message counts once"
    assert len(kept) == 8
    assert work.answer(1, {"result": None}) == {"over": True}
    assert len(kept) == 9


def test_ranks_side_by_side_do_each_piece_once():
    kept = []
    work = Work(pieces(a=50, b=50), lambda job, result: kept.append(tuple(job)))

    def rank(number):
        reply = work.answer(number, {})
        while reply is None or "job" in reply:
            reply = work.answer(number, {"result": None} if reply else {})

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == len(set(kept)) == 100


def test_a_rank_that_hangs_is_named_after_a_time_that_the_work_tells():
    work = Work(pieces(a=2), lambda job, result: None, patience_s=0.05)
    work.answer(1, {})
    work.answer(0, {})
    assert work.answer(1, {"result": None}) is None, "0 may be slower than 1"
    time.sleep(0.2)
    with pytest.raises(TrainingError, match=r"Process 0 has been at one batch for .* it hangs"):
        work.answer(1, {"result": None})


def test_before_anything_is_done_nobody_is_too_slow():
    work = Work(pieces(a=1), lambda job, result: None, patience_s=0)
    work.answer(1, {})
    time.sleep(0.05)
    assert work.answer(0, {}) is None
