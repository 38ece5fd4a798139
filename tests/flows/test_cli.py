"""The command line end to end, in processes of its own."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from lcia.cli.main import app
from lcia.config import parse_config
from lcia.config.stream import StreamConfig
from lcia.learner import Store


def edit(stream, **changes):
    tree = yaml.safe_load(stream.read_text())
    stream.write_text(yaml.safe_dump({**tree, **changes}))


def test_a_stream_is_learned_reported_and_skipped_when_done(lcia, stream, tmp_path):
    edit(stream, methods=["sequential", "lcia"])
    done = lcia("run", stream)
    assert done.returncode == 0, done.stderr
    for text in ("Average accuracy", "Forgetting", "g1     colours, shades", "g2     numbers"):
        assert text in done.stdout
    for label in ("sequential", "lcia"):
        folder = tmp_path / "out" / f"{label}-seed0"
        found = {path.name for path in folder.iterdir()}
        assert found == {
            "assistant",
            "journal.jsonl",
            ".lock",
            "task_given.jsonl",
            "metrics.json",
            "predictions.jsonl",
            "report.html",
            "resolved.yaml",
        }
    groups = {
        g.id
        for g in Store.open(tmp_path / "out/sequential-seed0/assistant").current.codebook().groups
    }
    assert groups == {"g1"}
    before = (tmp_path / "out/lcia-seed0/metrics.json").stat().st_mtime_ns
    again = lcia("run", stream, "--json")
    assert [r["label"] for r in json.loads(again.stdout)] == ["sequential", "lcia"]
    assert (tmp_path / "out/lcia-seed0/metrics.json").stat().st_mtime_ns == before


def test_a_misspelt_key_is_named_with_the_nearest(fails, stream):
    edit(stream, grouping={"treshold": 0.5})
    line = fails("run", stream)
    assert "grouping.treshold is not a field of lcia. Nearest: threshold" in line
    assert str(stream) in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sede": 1}, "sede is not a field of lcia. Nearest: seed"),
        ({"method": "lwff"}, "'lwff' is not one of the methods of lcia"),
        ({"rule": {"name": "release", "scal": 1}}, "scal"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat is not a field of Train"),
        ({"training": {"learning_rate": "high"}}, "training.learning_rate is 'high'"),
        ({"tasks": [{"name": "a", "tran": "a.jsonl"}]}, "tran is not a field of lcia. Nearest: tr"),
        ({"adapter": {"rank": 8}}, "adapter.rank is not a field of LoraConfig"),
        ({"gate": {"max_drop": -1}}, "gate.max_drop"),
        ({"generation": {"batchsize": 1}}, "Nearest: batch_size"),
        ({"model": "./missing"}, "'./missing' does not exist"),
        ({"orders": {"a/b": ["colours", "shades", "numbers"]}}, "'a/b' cannot name a folder"),
        ({"orders": {"a": ["colours"]}}, "orders.a: expected every task of the stream once"),
    ],
)
def test_wrong_settings_are_one_line_and_make_nothing(fails, stream, tmp_path, change, expected):
    edit(stream, **change)
    assert expected in fails("run", stream)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.0.scorer=exactmatch", "Nearest: exact_match"),
        ("tasks.1.instruction=last_lin", "last_line"),
        ("tasks.7.scorer=contains", "no such entry"),
        ("seed", "expected KEY=VALUE"),
    ],
)
def test_overrides_reach_into_lists_and_are_checked(fails, stream, tmp_path, override, expected):
    assert expected in fails("run", stream, "--set", override)
    assert not (tmp_path / "out").exists()


def test_a_broken_line_is_named_with_file_and_number(fails, stream, tmp_path):
    path = tmp_path / "shades-train.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, "{oops\n", *lines[:3]]))
    assert f"{path}:17" in fails("run", stream)
    assert "17" in fails("data", "check", path)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_line(fails, stream, tmp_path):
    (tmp_path / "numbers-test.jsonl").unlink()
    assert "numbers-test.jsonl" in fails("run", stream)
    assert "nowhere.yaml" in fails("run", tmp_path / "nowhere.yaml")
    assert "is not an assistant" in fails("eval", tmp_path)


def test_other_settings_do_not_continue_a_finished_folder(fails, lcia, stream):
    assert lcia("run", stream).returncode == 0
    edit(stream, training={"num_train_epochs": 1})
    assert "was begun with settings.training" in fails("run", stream)


def test_learn_then_ask_evaluate_report_and_roll_back(fails, lcia, stream, tmp_path, tiny_model):
    store = tmp_path / "assistant"
    quick = ["--set", "training.num_train_epochs=1", "--set", "dtype=float32"]
    assert "new assistant; say --model" in fails(
        "learn", store, tmp_path / "colours-train.jsonl", "--name", "colours"
    )
    assert not store.exists()
    first = lcia(
        "learn", store, tmp_path / "colours-train.jsonl", "--name", "colours",
        "--model", tiny_model, *quick, "--json",
    )  # fmt: skip
    assert json.loads(first.stdout)["group"] == "g1", first.stderr
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n')
    before = sorted(p for p in store.rglob("*"))
    fails("learn", store, bad, "--name", "bad")
    assert sorted(p for p in store.rglob("*")) == before
    second = lcia(
        "learn", store, tmp_path / "numbers-train.jsonl", "--name", "numbers",
        "--test", tmp_path / "numbers-test.jsonl", "--instruction", "first_line",
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "numbers is learned: version 2" in second.stdout

    asked = lcia("chat", store, "-p", r"Write this number as a digit.\n\ntwo", "--json")
    (answer,) = json.loads(asked.stdout)
    assert answer["group"] == Store.open(store).current.manifest["group"]
    assert answer["reason"] == "reached"

    evaluated = json.loads(lcia("eval", store, "--again", "--json").stdout)
    recorded = dict(zip(evaluated["matrix"]["tasks"], evaluated["matrix"]["rows"][-1], strict=True))
    assert evaluated["scores_again"] == pytest.approx(recorded)

    given = json.loads(lcia("eval", store, "--task-given", "--json").stdout)
    assert given["metrics"]["routing_accuracy"] == 100
    assert given["scores_task_given"] == pytest.approx(recorded)

    page = tmp_path / "page.html"
    assert lcia("report", store, "-o", page).returncode == 0
    assert "numbers" in page.read_text()

    assert "every file is as it was" in lcia("verify", store).stdout
    assert lcia("rollback", store, "1").returncode == 0
    current = [
        r["version"] for r in json.loads(lcia("versions", store, "--json").stdout) if r["current"]
    ]
    assert current == [1]
    adapter = min((store / "groups").rglob("adapter_model.safetensors"))
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x00")
    damaged = lcia("verify", store)
    assert damaged.returncode == 1
    assert f"{adapter} (versions 1 to 2): differs from its checksum" in damaged.stderr
    assert lcia("verify", store, "--no-weights").returncode == 0


def test_groups_are_shown_matched_and_changed_as_versions(lcia, fails, stream, tmp_path):
    assert lcia("run", stream).returncode == 0
    store = tmp_path / "out" / "lcia-seed0" / "assistant"
    shown = json.loads(lcia("groups", "show", store, "--json").stdout)
    assert [(g["id"], g["tasks"]) for g in shown] == [
        ("g1", ["colours", "shades"]),
        ("g2", ["numbers"]),
    ]
    prompt = r"Write this number as a digit.\n\nsix"
    matched = json.loads(lcia("groups", "match", store, prompt, "--json").stdout)
    assert matched["decision"]["group"] == "g2"
    assert set(matched["terms"]) == {"write", "number", "digit"}
    for change in (
        ["rename", store, "g2", "digits"],
        ["split", store, "g1", "--task", "shades"],
        ["retire", store, "g3"],
        ["merge", store, "g1", "g2", "--combination", "linear"],
    ):
        done = lcia("groups", *change)
        assert done.returncode == 0, done.stderr
        assert "Back: lcia rollback" in done.stdout
    assert "g9" in fails("groups", "retire", store, "g9")
    notes = [r["note"] for r in json.loads(lcia("versions", store, "--json").stdout)]
    assert notes[4:] == [
        "name g2 digits",
        "split shades from g1",
        "retire g3",
        "merge g2 into g1 (linear, weight 0.5)",
    ]
    assert lcia("rollback", store, "3").returncode == 0
    assert len(json.loads(lcia("groups", "show", store, "--json").stdout)) == 2


def test_plan_decides_as_learning_would_without_a_model(lcia, stream, tmp_path, caplog):
    edit(stream, model="never/loaded")
    plot = tmp_path / "similarities.png"
    (plan,) = json.loads(lcia("plan", stream, "--plot", plot, "--json").stdout)["plans"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    lcia("plan", stream, "--picture", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "--picture is now called --plot" in caplog.text
    assert plan["similarities"]["colours"] == {"colours": 1, "shades": 1, "numbers": 0}
    assert plan["levels"][0]["groups"] == {"colours": "g1", "shades": "g1", "numbers": "g2"}
    assert [(d["task"], d["group"]) for d in plan["decisions"]] == [
        ("colours", "g1"),
        ("shades", "g1"),
        ("numbers", "g2"),
    ]


def test_plan_shows_every_grouping_of_the_methods_in_every_order(lcia, stream, fails, tmp_path):
    loose = {"name": "lcia", "label": "loose", "grouping": {"threshold": 0.0}}
    forgetful = {"name": "lcia", "label": "forgetful", "remembered": 0}
    edit(
        stream,
        model="never/loaded",
        methods=["sequential", "lcia", loose, forgetful],
        orders={
            "there": ["colours", "numbers", "shades"],
            "back": ["numbers", "shades", "colours"],
        },
    )
    plans = json.loads(lcia("plan", stream, "--json").stdout)["plans"]
    found = {
        (*plan["labels"], plan["order"]): {d["task"]: d["group"] for d in plan["decisions"]}
        for plan in plans
    }
    one = dict.fromkeys(("colours", "numbers", "shades"), "g1")
    assert found == {
        ("lcia", "forgetful", "there"): {"colours": "g1", "numbers": "g2", "shades": "g1"},
        ("lcia", "forgetful", "back"): {"numbers": "g1", "shades": "g2", "colours": "g2"},
        ("loose", "there"): one,
        ("loose", "back"): one,
    }
    assert "Groups of loose, back, at threshold 0 (tfidf)" in lcia("plan", stream).stdout
    assert "draws one plan; there are 4" in fails("plan", stream, "--plot", tmp_path / "p.png")


@pytest.mark.parametrize("kind", ["methods", "rules", "readers", "scorers", "similarities"])
def test_everything_that_can_be_chosen_is_listed_with_what_it_is(lcia, kind):
    records = json.loads(lcia("ls", kind, "--json").stdout)
    assert records
    assert all(record["description"] for record in records)


VERBS = ["run", "learn", "plan", "eval", "report", "chat", "versions", "rollback", "verify", "ls"]
VERBS += ["abandon", "accept"]


@pytest.mark.parametrize("verb", [*([v] for v in VERBS), ["data", "check"], ["models", "prepare"]])
def test_every_verb_shows_examples(lcia, verb):
    done = lcia(*verb, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['lcia', '--help']\n"
        "try: runpy.run_module('lcia', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def verbs(command, path=()):
    """Yield the words of every verb with its parameters."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))
    if path and (not hasattr(command, "commands") or command.invoke_without_command):
        shown = (p for p in command.params if not getattr(p, "hidden", False))
        yield " ".join(path), [parameter.opts for parameter in shown]


DOCUMENTED = [
    (verb, options)
    for verb, options in verbs(typer.main.get_command(app))
    if verb not in ("groups", "data", "inbox", "releases")
]


@pytest.mark.parametrize(("verb", "options"), DOCUMENTED, ids=[verb for verb, _ in DOCUMENTED])
def test_every_verb_and_option_is_on_the_page(verb, options):
    found = re.search(rf"\$ lcia {verb} --help\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/cli.md lacks a block for lcia {verb}"
    block = found[1]
    assert f"Usage: lcia {verb} " in block
    for name in (option for names in options for option in names if option.startswith("-")):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", block), (
            f"run python docs/cli_page.py: {name}"
        )


def test_every_key_of_a_stream_file_is_on_the_page():
    keys = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert keys >= set(StreamConfig.model_fields)


def test_the_example_of_methods_gives_the_folders_it_promises():
    (example,) = re.findall(r"```yaml\n(methods:.*?)```", PAGE, re.DOTALL)
    tree = {"model": "m", "stream": "builtin:skills", "output": "out", **yaml.safe_load(example)}
    config = parse_config(StreamConfig, tree, where="docs/cli.md")
    labels = list(config.variants())
    assert "lcia-fixed99-t30" in labels
    for variant in config.variants().values():
        variant.check()


def test_a_command_that_trains_says_nothing_of_its_libraries(tmp_path, tiny_model):
    """DeepSpeed is installed, and not asked for; peft asks transformers by an older name."""
    pytest.importorskip("deepspeed")
    data = tmp_path / "data.jsonl"
    records = ({"prompt": f"{i} red\n\nSay it.", "completion": "red"} for i in range(20))
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = ["--set", "training.max_steps=2", "--set", "dtype=float32"]
    command = [sys.executable, "-W", "always::FutureWarning", "-m", "lcia", "learn"]
    command += [str(tmp_path / "a"), str(data), "--name", "red", "--model", str(tiny_model)]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "accelerator" not in done.stdout
    assert done.stdout.startswith("  red: opens group g1\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("lern",), r"No such command 'lern'\. Did you mean 'learn'\? See 'lcia --help'\."),
        (("learn",), r"Missing argument '(store|STORE)'\. See 'lcia learn --help'\."),
        (("learn", "a", "b", "--nme", "x"), "No such option: --nme"),
        (("gateway", "--store", "x"), r"Missing option '--upstream'\. See 'lcia gateway --help'\."),
        (
            ("ls", "tigers"),  # an older typer writes KIND:{methods|...}
            r"Invalid value for '(kind|KIND:\{.*\})': 'tigers' is not one of 'methods', ",
        ),
        (("groups", "merge", "\x1b[2Jx" * 999), "Missing argument"),
    ],
)
def test_a_wrong_command_is_told_in_one_line_with_where_to_look(lcia, typed, said):
    done = lcia(*typed)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(said, line), line
    assert line.endswith("--help'.")
    assert len(line) < 2000


def on_a_terminal(*command):
    """Run a command on a terminal; return what it shows there."""
    controller, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=env) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(controller, 65536):
                shown += part
        os.close(controller)
    assert process.returncode == 0, shown
    return shown.decode()


def test_long_work_shows_a_bar_with_its_rate_on_a_terminal_and_nothing_elsewhere(tmp_path):
    packed = Path(__file__).parents[1] / "fixtures" / "stores" / "schema-1.tar.xz"
    shutil.unpack_archive(packed, tmp_path, filter="data")
    (root,) = [path.parent for path in tmp_path.rglob("assistant.json")]
    command = [sys.executable, "-m", "lcia", "verify", str(root)]
    shown = on_a_terminal(*command)
    assert re.search(r"reading .*\d B of \d", shown)
    done = subprocess.run(command, capture_output=True, text=True)
    said = "".join(done.stdout.split())  # long lines are broken, in the middle of a path even
    assert said == f"{root}:everyfileisasitwasstored."
    assert done.stderr == ""
