"""Exports on the model hub: huggingface_hub talks to a server that speaks its few calls."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lcia.errors import ConfigError
from lcia.exports.hub import check_push


class Hub(ThreadingHTTPServer):
    """Keeps what is pushed, and refuses tokens that it does not know."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked, self.made, self.files = [], {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """The calls of a push whose files all go with the commit."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append(f"GET {self.path}")
        self.reply({"error": "not here"}, 404)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        self.server.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.reply({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.reply({"url": f"{self.server.url}/user/tickets"})
        elif self.path == "/api/validate-yaml":  # the model card
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
                elif entry["key"] == "header":
                    self.server.summary = entry["value"]["summary"]
            self.reply(
                {"commitUrl": f"{self.server.url}/user/tickets/commit/a", "commitOid": "a" * 40}
            )
        else:
            self.reply({"error": "unknown"}, 404)

    def chunks(self):
        """Read a body that is sent in chunks."""
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def reply(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def pushed(hub, store, out, token):
    """Run the real command, with the hub's address."""
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    command = [sys.executable, "-m", "lcia", "export", str(store.root), str(out)]
    command += ["--format", "peft", "--push", "user/tickets"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model, colours):
    from lcia.config import AssistantConfig
    from lcia.learner import ContinualLearner

    config = AssistantConfig(model=str(tiny_model), dtype="float32", training={"max_steps": 1})
    learner = ContinualLearner.create(tmp_path_factory.mktemp("hub") / "assistant", config)
    learner.learn(colours)
    return learner.store


def test_a_push_uploads_every_file_of_the_export(hub, store, tmp_path):
    done = pushed(hub, store, tmp_path / "out", "hf_right")
    assert done.returncode == 0, done.stderr
    assert f"Pushed: {hub.url}/user/tickets" in done.stdout
    assert (hub.made["name"], hub.made["organization"], hub.made["visibility"]) == (
        "tickets",
        "user",
        "private",
    )
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert hub.files.keys() == files >= {"README.md", "lcia.json", "g1/adapter_model.safetensors"}
    for name, content in hub.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    assert hub.summary == "Version 1 of assistant"


def test_a_refused_push_leaves_the_export_and_says_how_to_go_on(hub, store, tmp_path):
    done = pushed(hub, store, tmp_path / "out", "hf_wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("user/tickets: could not be pushed: ")
    assert f"'hf upload user/tickets {tmp_path / 'out'}' pushes it." in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "g1" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["tickets", "a/b/c", "user/..", "user/na me"])
def test_what_is_no_repository_is_refused_before_anything_is_written(name):
    with pytest.raises(ConfigError, match="expected user/name"):
        check_push(name)


def test_who_is_not_logged_in_is_told_so(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        check_push("user/name")
