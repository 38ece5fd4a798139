"""A server and its worker as processes of their own, and what they are asked to learn."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx

from conftest import make_task
from lcia.live.jobs import ENDED

SHADES = {"blue": "b", "white": "w"}


def lines_of(task) -> bytes:
    records = [
        {
            "messages": [
                {"role": "user", "content": sample.prompt},
                {"role": "assistant", "content": sample.answers[0]},
            ]
        }
        for sample in task.train
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def data(words=SHADES, *, name="shades", instruction="Say the letter of the colour.") -> bytes:
    return lines_of(make_task(name, instruction, words, train=20))


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lcia", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


@contextmanager
def server(root, *options):
    """Serve an assistant in a process of its own; yield its address and the process."""
    log = root.with_suffix(".log")
    with log.open("wb") as written:
        process = start("serve", root, "--port", 0, "--max-context", 256, *options, stderr=written)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(found[1] + "/readyz").status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[1], process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(client, job, *, status="succeeded", seconds=120):
    deadline = time.monotonic() + seconds
    while (found := client.fine_tuning.jobs.retrieve(job)).status not in ENDED:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found.status == status, found
    return found
