"""Processes meet, ask and end on their channel, without a process group."""

import subprocess
import sys
import time

import pytest
from tests.distributed.launching import MEETING

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
