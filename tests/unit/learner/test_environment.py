"""What a result says it was made with."""

import subprocess

import pytest
import torch

from lcia.learner import environment as module
from lcia.learner.environment import environment


@pytest.fixture(autouse=True)
def afresh():
    module._environment.cache_clear()
    yield
    module._environment.cache_clear()


def git(folder, *words):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_it_names_machine_and_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)  # as where lcia is installed
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert "revision" not in found


def test_a_checkout_says_its_revision_and_whether_files_differ(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = environment()["revision"]
    assert len(clean) >= 7
    (tmp_path / "file").write_text("two")
    module._environment.cache_clear()
    assert environment()["revision"] == f"{clean}-dirty"
