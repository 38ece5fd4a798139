"""Two processes are one run: joined whatever the launcher says, ended together, heard once."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors.torch import load_file
from tests.distributed.launching import HERE, MEETING, run, torchrun, write_data, write_stream
from torch.testing import assert_close

from conftest import make_task
from lcia.config import load_stream_config
from lcia.distributed.processes import Piece, Work, share
from lcia.errors import TrainingError
from lcia.experiments.running import run_experiment
from lcia.learner import Store

TALK = f"""{MEETING}
import signal
how = sys.argv[3]
channel = Channel.open(rank, 2, host="127.0.0.1", spread=spread)
main = channel.meet(os.getpid())
if rank == 1 and how in ("launcher", "operator"):
    os.kill(main, signal.SIGTERM)
    time.sleep(0.5 if how == "launcher" else 100)
if rank == 1 and how in ("kill", "launcher"):
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 1 or how == "both":
    channel.fail("disk is full", 3)
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("how", "said", "code"),
    [
        ("raise", "Process 1 of 2: disk is full", 3),
        ("both", "disk is full", 3),
        ("kill", "Process 1 of 2 ended without a word", 1),
        ("launcher", "Process 1 of 2 ended without a word", 1),
    ],
)
def test_what_happens_to_one_process_ends_all_with_one_line(how, said, code, tmp_path):
    codes, errors = talk(how, tmp_path)
    assert codes[0] == code
    assert errors[0].startswith(said)
    assert errors[0].count("\n") == 1
    assert errors[1] == ""


def test_a_main_process_that_is_asked_to_end_does_and_the_other_says_so(tmp_path):
    codes, errors = talk("operator", tmp_path)
    assert codes == [-signal.SIGTERM, 1]
    assert errors[0] == ""
    assert errors[1].startswith("Process 0 of 2 ended without a word")


def talk(how, folder):
    """Run two processes that talk, and return with what code each ended and what it said."""
    command = [sys.executable, "-c", TALK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "meeting"), how], stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    begun = time.monotonic()
    errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert time.monotonic() - begun < 15
    return [rank.returncode for rank in ranks], errors


def test_a_failed_process_ends_the_command_and_the_same_command_continues(
    tmp_path, tiny_model, colours
):
    write_stream(tmp_path, tiny_model, [colours])
    command = [HERE / "failing_rank.py", "raise", "run", "stream.yaml"]
    failed = run(torchrun(*command), tmp_path)
    assert failed.returncode != 0
    assert "Process 1 of 2: ValueError: the third step is too much" in failed.stderr
    assert failed.stderr.count("third step is too much") == 1
    done = run(torchrun("-m", "lcia", "run", "stream.yaml"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("scores:") == 1
    events = Store.open(tmp_path / "out" / "lcia-seed0" / "assistant").current.journal()
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4]
    assert "resumed" in {e["event"] for e in events}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"), [("kill", "ended without a word"), ("disk", "File too large")]
)
def test_a_killed_process_and_a_full_disk_end_the_command(how, said, tmp_path, tiny_model, colours):
    write_stream(tmp_path, tiny_model, [colours])
    failed = run(torchrun(HERE / "failing_rank.py", how, "run", "stream.yaml"), tmp_path)
    assert failed.returncode != 0
    assert failed.stderr.count(said) == 1
    done = run(torchrun("-m", "lcia", "run", "stream.yaml"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_teach_an_assistant_again_and_one_speaks(
    tmp_path, tiny_model, colours, shades
):
    for task, more in ((colours, ["--model", str(tiny_model)]), (shades, [])):
        settings = ["--set", "dtype=float32"] if more else []
        data = write_data(tmp_path, task)
        learn = ["-m", "lcia", "learn", "store", data, "--name", task.name, *more, *settings]
        done = run(torchrun(*learn), tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Scores in percent") == 1
    assert len(Store.open(tmp_path / "store").history()) == 2
    assert (tmp_path / "store-logs" / "process-1.log").is_file()


def test_one_process_where_accelerate_was_asked_for_two_is_refused(tmp_path, tiny_model, colours):
    write_stream(tmp_path, tiny_model, [colours])
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    done = run([*launch, "--num_processes", "2", "-m", "lcia", "run", "stream.yaml"], tmp_path)
    assert done.returncode != 0
    assert "torchrun --nproc_per_node 2" in done.stderr
    assert not (tmp_path / "out").exists()


def write_smallest(folder, tiny_model, tasks):
    entries = []
    for task in tasks:
        with (folder / f"{task.name}.jsonl").open("w") as file:
            for sample in task.train:
                record = {"prompt": sample.prompt, "completion": sample.answers[0]}
                file.write(json.dumps(record) + "\n")
        entries.append(f"{{name: {task.name}, train: {task.name}.jsonl, instruction: first_line}}")
    (folder / "stream.yaml").write_text(
        f"model: {tiny_model}\ndtype: float32\ntasks: [{', '.join(entries)}]\noutput: out\n"
        "training: {num_train_epochs: 2, learning_rate: 0.01, save_steps: 1,\n"
        f"           per_device_train_batch_size: 2, ddp_backend: gloo}}\n"
    )


def test_two_processes_learn_a_stream_into_one_store(tmp_path, tiny_model, colours, shades):
    write_smallest(tmp_path, tiny_model, (colours, shades))
    done = run(torchrun("-m", "lcia", "run", "stream.yaml"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    store = Store.open(tmp_path / "out" / "lcia-seed0" / "assistant")
    assert [version.manifest["group"] for version in store.history()] == ["g1", "g1"]
    assert store.verify() == []
    # 13 train samples in global batches of 4: 4 steps an epoch, none twice in the journal.
    for version in store.history():
        steps = [event["step"] for event in version.journal() if event["event"] == "step"]
        assert steps == list(range(1, 9))
    assert "ema/beta_mean" in version.journal()[-2]
    assert done.stdout.count("scores:") == 2, "only one process speaks"


def test_two_processes_choose_what_one_does(tmp_path, tiny_model):
    """The main one measures; both go on with the same parameters and the same group."""
    answers = {"animals": {"horse": "a", "sheep": "a"}, "tools": {"hammer": "z", "pliers": "z"}}
    tasks = [make_task(name, "Say it.", of, train=60) for name, of in answers.items()]
    write_smallest(tmp_path, tiny_model, tasks)
    # SGD, since Adam makes as much of a rounding error as of a gradient.
    settings = ["--set", "training.optim=sgd", "--set", "training.learning_rate=0.5"]
    settings += ["--set", "training.save_steps=100"]
    settings += ["--set", "method={name: lcia, validation: 0.1}"]
    done = run(torchrun("-m", "lcia", "run", "stream.yaml", *settings), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    overrides = [*settings[1::2], "training.per_device_train_batch_size=4", "output=alone"]
    alone = tmp_path / "alone.yaml"
    alone.write_text((tmp_path / "stream.yaml").read_text().replace(", ddp_backend: gloo", ""))
    run_experiment(load_stream_config(alone, overrides), base=tmp_path)
    one, two = (
        Store.open(tmp_path / folder / "lcia-seed0" / "assistant").current
        for folder in ("alone", "out")
    )
    expected, found = one.manifest["choice"], two.manifest["choice"]
    for key in ("chosen", "parameters", "samples", "work"):
        assert found[key] == expected[key]
    for row, other in zip(found["table"], expected["table"], strict=True):
        assert row["name"] == other["name"]
        assert row["losses"] == pytest.approx(other["losses"], rel=1e-2, abs=1e-4)
    assert found["table"][0]["losses"] != found["table"][1]["losses"]
    (_, expected_folder), (_, found_folder) = (v.adapters[v.manifest["group"]] for v in (one, two))
    name = "adapter_model.safetensors"
    assert_close(
        load_file(found_folder / name), load_file(expected_folder / name), rtol=2e-3, atol=2e-5
    )


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
