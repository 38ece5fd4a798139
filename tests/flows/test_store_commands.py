"""Ways out of every state an assistant can be left in, by the commands that messages name."""

import json
import re
import shlex

import pytest

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
