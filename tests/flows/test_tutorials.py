"""Every block of docs/tutorials.md runs, in order, in an empty folder, with a tiny model."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lcia.demo.embedded import PROVENANCE, SMOLLM2
from lcia.files import write_json

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SERVE = "lcia serve assistant --learn &\n"
INSTALL = "pip install ./half\n"


@pytest.fixture
def place(tmp_path, tiny_model):
    """An empty folder, where ``smollm2-135m`` is the tiny model and nothing else is prepared."""
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    shutil.copytree(tiny_model, models / SMOLLM2.name)
    write_json(models / SMOLLM2.name / PROVENANCE, SMOLLM2.provenance())
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server, url):
    """Wait as long as it takes; a server that ended is waited for no longer."""
    while server.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.2)


@pytest.mark.slow
def test_the_tutorials_run_as_they_stand(place, capsys):
    port, site = free_port(), place.parent / "site"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PATH": tools, "PYTHONPATH": paths, "HOME": str(place.parent)}
    env |= {"LCIA_CACHE": str(place.parent / "cache"), "OMP_NUM_THREADS": "1"}
    pip = f"python -m pip install -q --no-build-isolation --no-deps --target {site} ./half\n"
    server, run = None, {"python": 0, "bash": 0}
    try:
        for language, text in BLOCKS:
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(INSTALL, pip)
            if text == SERVE:
                command = ["lcia", "serve", "assistant", "--learn", "--port", str(port)]
                with (place.parent / "server.log").open("w") as log:
                    server = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log)
                wait_until_ready(server, f"http://127.0.0.1:{port}/readyz")
                continue
            command = ["python", "-c", text] if language == "python" else ["bash", "-ec", text]
            done = subprocess.run(
                command, cwd=place, env=env, capture_output=True, text=True, timeout=600
            )
            log = place.parent / "server.log"
            served = log.read_text() if server is not None else ""
            assert server is None or server.poll() is None, f"the server ended:\n{served}"
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{served}"
            run[language] += 1
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    with capsys.disabled():
        print(f"\n{run['bash'] + 1} blocks of shell and {run['python']} of Python ran")  # noqa: T201
    assert sum(run.values()) + 1 == len(BLOCKS)
