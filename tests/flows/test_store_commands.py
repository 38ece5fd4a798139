"""Ways out of every state an assistant can be left in, by the commands that messages name."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import lcia
from flows.test_experiments import edit
from lcia.cli.main import app
from lcia.learner import ContinualLearner, Store


class Killed(BaseException):
    """Stands for the process dying."""


def die_at(monkeypatch, step: int) -> None:
    from lcia.learner.training import _Steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(_Steps, "on_step_end", on_step_end)


def commands(line: str, store) -> list[list[str]]:
    """The lcia commands that a message names, as arguments."""
    found = re.findall(r"lcia ((?:abandon|rollback|accept) [^;,()]*?)(?=[;,()']|\.(?: |$)|$)", line)
    return [shlex.split(command) for command in found]


@pytest.fixture
def teach(tmp_path, tiny_model):
    """The command that teaches a task of ``stream``'s files."""
    settings = ["--set", "dtype=float32", "--set", "training.save_steps=1"]

    def arguments(name, *more, new=False):
        model = ["--model", tiny_model, *settings] if new else []
        files = [tmp_path / f"{name}-train.jsonl", "--test", tmp_path / f"{name}-test.jsonl"]
        return ["learn", tmp_path / "a", *files, "--name", name, *model, *more]

    return arguments


@pytest.fixture
def interrupted(lcia, stream, teach, tmp_path, monkeypatch):
    """An assistant with two tasks whose third was killed in training."""
    assert lcia(*teach("colours", new=True)).returncode == 0
    assert lcia(*teach("shades")).returncode == 0
    with monkeypatch.context() as patch:
        die_at(patch, 2)
        with pytest.raises(Killed):
            lcia(*teach("numbers"))
    return tmp_path / "a"


def test_groups_are_not_changed_while_a_task_is_unfinished(interrupted, lcia, fails, teach):
    for change in (
        ["rename", interrupted, "g1", "letters"],
        ["retire", interrupted, "g1"],
        ["split", interrupted, "g1", "--task", "shades"],
        ["merge", interrupted, "g1", "g1"],
    ):
        assert "'numbers' is unfinished" in fails("groups", *change)
    assert list((interrupted / "runs").glob("*/checkpoints/*/complete.json")), "nothing was lost"
    assert "Unfinished: numbers" in lcia("versions", interrupted).stdout
    (command,) = commands(fails("groups", "rename", interrupted, "g1", "letters"), interrupted)
    assert lcia(*command).returncode == 0
    assert lcia("groups", "rename", interrupted, "g1", "letters").returncode == 0
    assert "no task is unfinished" in fails("abandon", interrupted)


@pytest.mark.parametrize("way", ["give up", "go back"])
def test_one_message_leads_out_of_a_rollback_with_a_task_unfinished(
    interrupted, lcia, fails, teach, way
):
    assert lcia("rollback", interrupted, "1").returncode == 0
    line = fails(*teach("numbers"))
    assert "builds on version 2, but version 1 is current" in line
    give_up, go_back = commands(line, interrupted)
    assert lcia(*(give_up if way == "give up" else go_back)).returncode == 0
    done = lcia(*teach("numbers", "--json"))
    assert done.returncode == 0, done.stderr
    tasks = set(json.loads(done.stdout)["scores"])
    assert tasks == {"colours", "numbers"} | ({"shades"} if way == "go back" else set())
    assert lcia("verify", interrupted).returncode == 0


def test_learning_goes_on_after_a_kill_when_the_settings_agree(
    lcia, fails, stream, teach, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        die_at(patch, 2)
        with pytest.raises(Killed):
            lcia(*teach("colours", new=True))
    line = fails(*teach("colours", "--set", "seed=7", new=True))
    assert "was made with seed = 0; now it is 7" in line
    done = lcia(*teach("colours", new=True))
    assert done.returncode == 0, done.stderr
    events = [event["event"] for event in Store.open(tmp_path / "a").current.journal()]
    assert "resumed" in events
    assert "choose another folder" in fails(*teach("shades", "--set", "seed=7", new=True))
    assert lcia(*teach("shades", new=True)).returncode == 0


def test_an_assistant_that_holds_nothing_is_made_anew_with_other_settings(
    lcia, fails, stream, teach, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        die_at(patch, 2)
        with pytest.raises(Killed):
            lcia(*teach("colours", new=True))
    (command,) = commands(fails(*teach("colours", "--set", "seed=7", new=True)), tmp_path / "a")
    assert lcia(*command).returncode == 0
    assert lcia(*teach("colours", "--set", "seed=7", new=True)).returncode == 0
    assert Store.open(tmp_path / "a").config.seed == 7


def test_a_refused_candidate_is_kept_listed_accepted_or_removed(
    lcia, stream, teach, tmp_path, monkeypatch
):
    strict = ["--set", "gate.max_drop=1"]
    assert lcia(*teach("colours", *strict, new=True)).returncode == 0
    from lcia.learner import learning

    def worse(predictions):
        scores = {p.task: 100.0 for p in predictions}
        return {t: 0.0 if len(scores) > 1 and t == "colours" else s for t, s in scores.items()}

    monkeypatch.setattr(learning, "scores_percent", worse)
    store = Store.open(tmp_path / "a")
    matrix = store.current.matrix().with_scores(1, {"colours": 60.0})
    monkeypatch.setattr("lcia.store.store.Version.matrix", lambda version: matrix)
    refused = lcia(*teach("shades"))
    monkeypatch.undo()
    assert refused.returncode == 1
    assert "'colours' fell by 60.0 points" in refused.stderr
    assert "kept in refused/0002-shades" in refused.stderr
    assert lcia("verify", tmp_path / "a").returncode == 0
    listed = json.loads(lcia("versions", tmp_path / "a", "--json").stdout)
    assert [r["version"] for r in listed if r["refused"]] == [2]
    trained = []
    monkeypatch.setattr(ContinualLearner, "_train", lambda *a, **k: trained.append(a))
    again = lcia(*teach("shades"))
    monkeypatch.undo()
    assert (again.returncode, trained) == (1, [])
    assert "trained and refused before" in again.stderr
    accept, remove = commands(again.stderr, tmp_path / "a")
    assert accept[0] == "accept"
    assert lcia(*accept).returncode == 0
    assert Store.open(tmp_path / "a").current.manifest["task"] == "shades"
    assert lcia("verify", tmp_path / "a").returncode == 0
    assert "has no refused candidate 2" in lcia(*remove).stderr


@pytest.fixture
def refused(lcia, stream, teach, tmp_path, monkeypatch):
    """An assistant with one task whose gate refused the next, as candidate 2."""
    assert lcia(*teach("colours", "--set", "gate.max_drop=1", new=True)).returncode == 0
    with monkeypatch.context() as patch:
        matrix = Store.open(tmp_path / "a").current.matrix().with_scores(1, {"colours": 100.0})
        patch.setattr("lcia.store.store.Version.matrix", lambda version: matrix)
        assert lcia(*teach("shades")).returncode == 1
    return tmp_path / "a"


@pytest.mark.parametrize("step", ["place_adapters", "point_to"])
def test_accepting_that_was_killed_is_finished_by_the_same_command(
    refused, lcia, monkeypatch, step
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, step, lambda *a: (_ for _ in ()).throw(Killed))
        lcia("accept", refused, "2")
    assert Store.open(refused).current_number == 1
    for _ in range(2):  # and once more, when it is done
        done = lcia("accept", refused, "2")
        assert done.returncode == 0, done.stderr
        assert "version 2 is current" in done.stdout
    assert Store.open(refused).versions() == [0, 1, 2]
    assert lcia("verify", refused).returncode == 0


def test_pruning_says_what_goes_and_removes_it_when_told(lcia, stream, teach, tmp_path):
    root = tmp_path / "a"
    assert lcia(*teach("colours", new=True)).returncode == 0
    assert lcia(*teach("shades")).returncode == 0
    assert lcia("groups", "rename", root, "g1", "letters").returncode == 0
    said = lcia("prune", root, "--keep-last", "1").stdout
    assert "keeps versions 0, 2 to 3" in said
    assert "to free: add --yes" in said
    assert (root / "groups" / "g1" / "0001").is_dir()
    assert "freed" in lcia("prune", root, "--keep-last", "1", "--yes").stdout
    assert not (root / "groups" / "g1" / "0001").exists()
    assert lcia("verify", root).returncode == 0
    assert "colours (pruned)" in lcia("versions", root).stdout
    assert "version 1 was pruned. Versions: 0, 2, 3." in lcia("rollback", root, "1").stderr
    assert "already" not in lcia(*teach("colours")).stderr
    assert "version 3 has it so" in lcia("groups", "rename", root, "g1", "letters").stdout
    report = json.loads(lcia("prune", root, "--json").stdout)
    assert (report["kept"], report["folders"], report["done"]) == ([0, 2, 3], [], False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            "OSError(errno.ENOSPC, 'No space left on device', 'a/b')",
            "a/b: No space left on device. Make",
        ),
        (
            "SafetensorError('I/O error: No space left on device (os error 28)')",
            "No space left on device",
        ),
        (  # as torch says it
            "RuntimeError('unable to open file </a> in read-only mode: Too many open files (24)')",
            "Too many open files. Allow",
        ),
        ("OSError(errno.EROFS, 'Read-only file system', 'a')", "a: Read-only file system. Make it"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(lcia, monkeypatch, tmp_path, error, expected):
    import errno

    from safetensors import SafetensorError

    def fails(root):
        raise eval(error, {"errno": errno, "SafetensorError": SafetensorError})

    monkeypatch.setattr(Store, "open", fails)
    done = lcia("versions", tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.strip().endswith("run the same command again.")
    assert "\n" not in done.stderr.strip()


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
