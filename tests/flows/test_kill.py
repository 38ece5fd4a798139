"""``kill -9`` in the second task, then the same command: equal to the bit."""

import os
import signal
import subprocess
import sys
import time

from lcia.learner import Store


def adapters_of(root):
    current = Store.open(root).current
    return {
        group: (folder / "adapter_model.safetensors").read_bytes()
        for group, (_, folder) in current.adapters.items()
    }


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "lcia", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_kill_dash_nine_in_the_second_task_and_run_again(stream, tmp_path):
    settings = ["--set", "training.num_train_epochs=40"]
    straight = start("run", stream, *settings, "--set", "output=straight")
    process = start("run", stream, *settings)
    assistant = tmp_path / "out" / "lcia-seed0" / "assistant"
    deadline = time.monotonic() + 300
    while not list(assistant.glob("runs/0002-shades/checkpoints/*/complete.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Store.open(assistant).current.number == 1
    assert not (tmp_path / "out" / "lcia-seed0" / "metrics.json").exists()

    assert start("run", stream, *settings).wait(timeout=300) == 0
    assert straight.wait(timeout=300) == 0
    expected = adapters_of(tmp_path / "straight" / "lcia-seed0" / "assistant")
    assert adapters_of(assistant) == expected
