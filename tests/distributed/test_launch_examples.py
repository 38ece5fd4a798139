"""The examples of launching are what the launchers and lcia take."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

from lcia.cli.main import TOGETHER, app

FOLDER = Path(__file__).parents[2] / "examples" / "launch"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix in {".sh", ".sbatch"})
DOCS = (FOLDER.parents[1] / "docs" / "distributed.md").read_text()


def command_of(script):
    """Return the words of the launching command, with variables filled in."""
    text = script.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "lcia run" in line and line[0] != "#"]
    filled = {"1": "stream.yaml", "PROCESSES": "4", "first": "node1"}
    filled |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    line = re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: filled[found[1]], line)
    line = re.sub(r"\$(\w+)", lambda found: filled[found[1]], line)
    words = shlex.split(line)
    return words[1:] if words[0] == "srun" else words


def understood(words):
    """Let the launcher's own parser read its options; return the module and its arguments."""
    launcher, *arguments = words
    if launcher == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(arguments)
        assert parsed.module
        return parsed.training_script, parsed.training_script_args
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments.pop(0) == "launch"
        parsed = launch_command_parser().parse_args(arguments)
        assert parsed.module
        return parsed.training_script, parsed.training_script_args
    pytest.importorskip("deepspeed")
    from deepspeed.launcher.runner import parse_args

    parsed = parse_args(arguments)
    assert parsed.module
    assert parsed.no_local_rank
    return parsed.user_script, parsed.user_args


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_its_launcher_and_lcia_know_every_option(script):
    subprocess.run(["bash", "-n", script], check=True)
    module, arguments = understood(command_of(script))
    assert module == "lcia"
    assert importlib.util.find_spec(module)
    verb, *rest = arguments
    assert verb in TOGETHER
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, list(rest))  # refuses what it does not know
    assert script.name in DOCS


def test_a_job_asks_for_one_task_a_node_and_may_be_requeued():
    (script,) = (s for s in SCRIPTS if s.suffix == ".sbatch")
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert asked["ntasks-per-node"] == "1"
    assert "requeue" in asked
    assert asked["nodes"] == "1"
