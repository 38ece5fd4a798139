"""``benchmarks/gpu.sh`` parses, says where there is no GPU, and calls what is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
TEXT = SCRIPT.read_text().replace("\\\n", " ")
STEPS = [line.split() for line in TEXT.splitlines() if line.lstrip().startswith("step ")]
MODULES = sorted({words[words.index("-m") + 1] for words in STEPS} - {"pytest"})


def test_it_parses():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    results = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        ["bash", SCRIPT, results], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "gpu.sh: no GPU to see here; nothing was measured.\n"
    assert not results.exists()


@pytest.mark.parametrize("module", MODULES)
def test_what_it_calls_takes_the_options_it_gives(module):
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    own = [words for words in STEPS if module in words]
    given = {word for words in own for word in words if word.startswith("--")}
    assert given <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_tests_it_runs_are_there():
    files = re.findall(r"tests/\S+\.py", TEXT)
    assert files
    assert all((ROOT / file).is_file() for file in files)
