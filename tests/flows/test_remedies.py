"""What messages tell people to do can be done: every command and option they name exists."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import lcia
from flows.test_experiments import edit
from lcia.cli.main import app

SOURCE = Path(lcia.__file__).parent
COMMAND = get_command(app)

# Options of other programs that messages and generated files name.
FOREIGN = {
    "--cpu",  # accelerate launch
    "--delete",  # tar, find
    "--jinja",  # llama-server
    "--parallel",
    "--enable-lora",
    "--lora-modules",
    "--max-lora-rank",
    "--max-loras",
    "--no-deps",  # pip
    "--num_processes",
    "--num_machines",
    "--nproc_per_node",
    "--nproc-per-node",
    "--served-model-name",
}


def said(path):
    """The texts of a module that are no docstrings: f-strings with their holes as ``X``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation | inside
        ):
            yield node.value


MESSAGES = sorted({(path, text) for path in SOURCE.rglob("*.py") for text in said(path)})


def verbs(command=COMMAND, names=()):
    """Every verb with its options."""
    for name, sub in getattr(command, "commands", {}).items():
        yield from verbs(sub, (*names, name))
    if not getattr(command, "commands", None):
        yield names, {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


VERBS = dict(verbs())
OPTIONS = set().union(*VERBS.values()) | {"--help", "--version", "--debug", "--install-completion"}


def commands_named():
    for path, text in MESSAGES:
        for match in re.finditer(r"(?:^|['`(\s])lcia ((?:[a-z-]+)(?: [a-z-]+)*)", text):
            if text[match.start() : match.start() + 1] in "'`":
                yield path.name, match[1]


def options_named():
    for path, text in MESSAGES:
        if len(text.split()) >= 4 and path.name != "svg.py":  # whose custom properties look alike
            for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text):
                yield path.name, option


@pytest.mark.parametrize(("module", "words"), sorted(set(commands_named())))
def test_every_command_a_message_names_exists(module, words):
    names = words.split()
    assert any(tuple(names[:n]) in VERBS for n in (1, 2)), f"{module}: lcia {words}"


@pytest.mark.parametrize(("module", "option"), sorted(set(options_named())))
def test_every_option_a_message_names_exists(module, option):
    assert option in OPTIONS | FOREIGN, f"{module}: {option}"


def test_options_that_messages_about_data_name_are_those_of_learn_and_of_data_check():
    data = {o for path, text in MESSAGES if "data" in path.parts for o in [*_options(text)]}
    named = data & OPTIONS
    assert named >= {"--role", "--map"}
    for verb in (("learn",), ("data", "check")):
        assert named | {"--format", "--images"} <= VERBS[verb]


def _options(text):
    return re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)


def test_mapping_a_role_as_told_makes_the_file_readable(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello"}]}\n'
        * 2
    )
    runner = CliRunner()
    first = runner.invoke(app, ["data", "check", str(path)])
    remedy = re.search(r"Map it with (--role \S+)\.", str(first.exception))[1]
    again = runner.invoke(app, ["data", "check", str(path), *remedy.split()])
    assert again.exit_code == 0, again.output


CANNOT = [
    ("adapter.target_modules=[query_key_value]", "query_key_value"),
    ("adapter.init_lora_weights=pissa", "adapter.init_lora_weights is 'pissa'"),
    ("adapter.use_dora=true", "adapter.use_dora is True"),
    ("adapter.bias=all", "adapter.bias is 'all'"),
    ("adapter.modules_to_save=[lm_head]", "adapter.modules_to_save is ['lm_head']"),
    ("adapter.r=0", "adapter.r is 0"),
    ("training.report_to=wandb", "wandb"),
    ("training.optim=adamw_8bit", "bitsandbytes"),
    ("training.lr_scheduler_type=cosine_with_min_lr", "min_lr"),
    ("training.train_sampling_strategy=group_by_length", "expected 'random' or 'sequential'"),
    ("training.save_only_model=true", "training.save_only_model is True"),
    ("training.eval_strategy=steps", "training.eval_strategy is 'steps'"),
    ("training.load_best_model_at_end=true", "training.load_best_model_at_end is True"),
    ("training.num_train_epochs=0", "training.num_train_epochs is 0"),
    ("training.max_steps=0", "training.max_steps is 0"),
    ("training.push_to_hub=true", "training.push_to_hub is True"),
    ("training.deepspeed=none_such.json", "none_such.json"),
    ("training.auto_find_batch_size=true", "training.auto_find_batch_size is True"),
    ("training.dataloader_persistent_workers=true", "persistent_workers"),
    ("training={dataloader_drop_last: true, per_device_train_batch_size: 64}", "a batch of 64"),
    ("method={name: moelora, experts: 3}", "adapter.r is 8"),
    ("method={name: ewc, strength: .inf}", "method.strength is inf"),
    ("adapter.target_modules='('", "no regular expression"),
    ("seed=-1", "is -1: input should be greater"),
    ("seed=4294967296", "is 4294967296: input should be less"),
]


@pytest.mark.parametrize(("override", "expected"), CANNOT, ids=[o for o, _ in CANNOT])
def test_they_are_one_line_and_nothing_is_made(
    override, expected, fails, stream, tmp_path, tiny_model
):
    edit(stream, method="sequential")
    assert expected in fails("run", stream, "--set", override)
    assert not (tmp_path / "out").exists()
    data, store = tmp_path / "colours-train.jsonl", tmp_path / "assistant"
    options = ["--name", "colours", "--model", tiny_model, "--set", override]
    assert expected in fails("learn", store, data, *options)
    assert not store.exists()


def test_what_a_diverged_task_advises_works(lcia, stream, tmp_path, tiny_model):
    data = tmp_path / "colours-train.jsonl"
    learn = ["--name", "colours", "--model", tiny_model, "--set", "dtype=float32"]
    wild = lcia("learn", tmp_path / "a", data, *learn, "--set", "training.learning_rate=1e20")
    assert wild.returncode == 1
    (told,) = [line for line in wild.stderr.splitlines() if line.startswith("task 'colours'")]
    assert "make a new one, or for a stream another output" in told
    calm = lcia("learn", tmp_path / "b", data, *learn, "--set", "training.learning_rate=1e-3")
    assert calm.returncode == 0, calm.stderr
    edit(stream, method="sequential")
    wild = lcia("run", stream, "--set", "training.learning_rate=1e20")
    assert wild.returncode == 1
    assert "sequential-seed0: task 'colours', step " in wild.stderr
    calm = lcia("run", stream, "--set", "training.learning_rate=1e-3", "--set", "output=other")
    assert calm.returncode == 0, calm.stderr
