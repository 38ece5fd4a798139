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


def test_kill_dash_nine_in_the_second_task_and_run_again(lcia, stream, tmp_path):
    settings = ["--set", "training.num_train_epochs=40"]
    straight = lcia("run", stream, *settings, "--set", "output=straight")
    assert straight.returncode == 0, straight.stderr
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lcia", "run", str(stream), *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assistant = tmp_path / "out" / "lcia-seed0" / "assistant"
    deadline = time.monotonic() + 120
    while not list(assistant.glob("runs/0002-shades/checkpoints/*/complete.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Store.open(assistant).current.number == 1
    assert not (tmp_path / "out" / "lcia-seed0" / "metrics.json").exists()

    resumed = lcia("run", stream, *settings)
    assert resumed.returncode == 0, resumed.stderr
    expected = adapters_of(tmp_path / "straight" / "lcia-seed0" / "assistant")
    assert adapters_of(assistant) == expected
