"""Pieces of work go to whoever asks, each once, and few adapters to each."""

import threading
import time

import pytest

from lcia.distributed.work import Piece, Work, share
from lcia.errors import TrainingError


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
