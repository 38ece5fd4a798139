"""Learning as a transaction: resumable at every point, exact, refused by the gate."""

import json
import os
import subprocess
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.distributed.checkpoint import last_checkpoint
from lcia.errors import ConfigError, GateError, ModelError, StoreError
from lcia.learner import ContinualLearner, Journal, Store, read_journal
from lcia.learner import outcome as module
from lcia.learner.outcome import environment

TRAINING = {"num_train_epochs": 2, "learning_rate": 1e-2, "save_steps": 1}


class Killed(BaseException):
    """Stands for the process dying: nothing in lcia catches it."""


def configure(model, **settings) -> AssistantConfig:
    adapter = {"lora_dropout": 0.1, **settings.pop("adapter", {})}
    return AssistantConfig(
        model=str(model), dtype="float32", training=TRAINING, adapter=adapter, **settings
    )


def adapters_of(store: Store) -> dict[str, bytes]:
    """Every adapter file of the current version, by group and name."""
    return {
        f"{group}/{path.name}": path.read_bytes()
        for group, (_, folder) in store.current.adapters.items()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture
def learned(tiny_model, tmp_path, colours, shades, numbers) -> Store:
    learner = ContinualLearner.create(tmp_path / "straight", configure(tiny_model))
    learner.run([colours, shades, numbers])
    return learner.store


def test_same_instruction_reuses_a_group_and_another_opens_one(learned):
    manifests = [version.manifest for version in learned.history()]
    assert [(m["group"], m["reason"]) for m in manifests] == [
        ("g1", "first_group"),
        ("g1", "reuse"),
        ("g2", "expand"),
    ]


@pytest.mark.parametrize(("start", "source"), [("nearest", "g1"), ("latest", "g2")])
def test_a_new_group_starts_from_a_copy_of_another(
    start, source, tiny_model, tmp_path, colours, numbers, shades
):
    config = configure(tiny_model, grouping={"start": start, "threshold": 1.0})
    store = ContinualLearner.create(tmp_path / "a", config).store
    ContinualLearner(store).run([colours, numbers])
    frozen = config.model_copy(update={"training": {**TRAINING, "learning_rate": 0.0}})
    learner = ContinualLearner(store)
    learner.config = frozen
    before = adapters_of(store)
    close = Task(
        name="close",
        train=tuple(
            replace(sample, instruction=f"{sample.instruction} Mind capitals.")
            for sample in shades.train
        ),
        test=shades.test,
        instruction="field",
    )
    assert learner.learn(close).group == "g3"
    weights = "adapter_model.safetensors"
    assert adapters_of(store)[f"g3/{weights}"] == before[f"{source}/{weights}"]


def test_learning_a_task_again_tells_what_it_led_to_then(tiny_model, tmp_path, colours, shades):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model))
    first, second = learner.run([colours, shades])
    assert learner.run([colours, shades]) == [first, second]
    matrix = learner.store.current.matrix()
    assert (list(first.before), list(second.before)) == (["colours"], ["colours", "shades"])
    assert first.before["colours"] == first.score_before == matrix[0, 1]
    assert second.before == {"colours": matrix[1, 1], "shades": matrix[1, 2]}


def test_every_learned_task_is_scored_after_every_task(learned):
    matrix = learned.current.matrix()
    assert matrix.tasks == ("colours", "shades", "numbers")
    for t in range(1, 4):
        assert all(matrix[t, i] is not None for i in range(1, t + 1))
        assert matrix[t - 1, t] is not None, "the score before learning"
        assert matrix[0, t] is not None, "the base model's score"


def test_the_score_of_a_cell_is_the_mean_of_its_predictions(learned):
    for version in learned.history():
        row = version.matrix().row(version.matrix().learned)
        for task in version.tasks():
            scores = [p.score for p in version.predictions() if p.task == task.name]
            assert len(scores) == len(task.test)
            assert row[task.name] == pytest.approx(100 * sum(scores) / len(scores))


def test_nothing_in_a_store_is_pickled(learned, tiny_model, tmp_path, colours, monkeypatch):
    interrupted = ContinualLearner.create(tmp_path / "cut", configure(tiny_model))
    kill_after_steps(monkeypatch, 2)
    with pytest.raises(Killed):
        interrupted.learn(colours)
    files = [p for root in (learned.root, tmp_path / "cut") for p in root.rglob("*") if p.is_file()]
    allowed = {".json", ".jsonl", ".safetensors", ".md"}
    assert {p.suffix for p in files} - allowed <= {""}
    assert {p.name for p in files if not p.suffix} == {".lock", ".audit-lock"}
    assert any("checkpoint-" in str(p) for p in files)


def test_adapters_are_plain_peft_directories(learned):
    from peft import LoraConfig

    folder = learned.current.adapters["g1"][1]
    assert LoraConfig.from_pretrained(folder).r == 8
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))


def kill_after_steps(monkeypatch, steps: int) -> None:
    """Die when optimizer step ``steps`` of the next training is done, before it is saved."""
    from lcia.learner.training import _Steps

    seen = []

    def on_step_end(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == steps:
            raise Killed

    monkeypatch.setattr(_Steps, "on_step_end", on_step_end)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_killed_in_training_and_resumed_is_equal_to_the_bit(
    learned, tiny_model, tmp_path, colours, shades, numbers, monkeypatch, steps
):
    root = tmp_path / "cut"
    learner = ContinualLearner.create(root, configure(tiny_model))
    learner.learn(colours)
    with monkeypatch.context() as patch:
        kill_after_steps(patch, steps)
        with pytest.raises(Killed):
            learner.learn(shades)
    assert Store.open(root).current.number == 1, "the old version is still served"
    if steps > 1:
        assert last_checkpoint(root / "runs" / "0002-shades" / "checkpoints") is not None
    again = ContinualLearner(Store.open(root))
    again.run([colours, shades, numbers])
    assert adapters_of(again.store) == adapters_of(learned)
    assert again.store.current.matrix() == learned.current.matrix()
    assert not any((root / "runs").iterdir())
    steps_seen = [e["step"] for e in again.store.version(2).journal() if e["event"] == "step"]
    # Two epochs of 16 samples and 2 remembered ones, in batches of 8.
    assert steps_seen == [1, 2, 3, 4, 5, 6], "no step twice in the journal"


def test_killed_at_any_file_operation_leaves_the_old_or_the_new_version(
    tiny_model, tmp_path, colours, shades, monkeypatch
):
    root = tmp_path / "assistant"
    learner = ContinualLearner.create(root, configure(tiny_model))
    learner.learn(colours)
    before = adapters_of(learner.store)
    replace, finished, point = os.replace, False, 0
    while not finished:
        point += 1
        calls = []

        def dying_replace(source, target, calls=calls, point=point):
            calls.append(target)
            if len(calls) == point:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying_replace)
            try:
                ContinualLearner(Store.open(root), host=learner.host).learn(shades)
                finished = True
            except Killed:
                current = Store.open(root).current
                assert current.number in (1, 2)
                if current.number == 1:
                    assert adapters_of(Store.open(root)) == before
                assert Store.open(root).verify() == []
    assert point > 5
    straight = ContinualLearner.create(tmp_path / "straight", configure(tiny_model))
    straight.run([colours, shades])
    assert adapters_of(Store.open(root)) == adapters_of(straight.store)
    assert Store.open(root).verify() == []


def test_learning_again_returns_the_same_outcome_without_work(learned, numbers):
    files = {p: p.stat().st_mtime_ns for p in learned.root.rglob("*.json*")}
    outcome = ContinualLearner(learned).learn(numbers)
    assert (outcome.version, outcome.group) == (3, "g2")
    assert {p: p.stat().st_mtime_ns for p in learned.root.rglob("*.json*")} == files


def test_a_task_name_stands_for_one_set_of_data(learned, numbers):
    from dataclasses import replace

    other = replace(numbers, train=numbers.train[:4])
    with pytest.raises(StoreError, match=r"'numbers' was learned from other data in version 3"):
        ContinualLearner(learned).learn(other)


def test_an_unfinished_task_blocks_others_with_a_way_out(
    tiny_model, tmp_path, colours, numbers, monkeypatch
):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model))
    with monkeypatch.context() as patch:
        kill_after_steps(patch, 1)
        with pytest.raises(Killed):
            learner.learn(colours)
    with pytest.raises(StoreError, match=r"'colours' is unfinished.*give it up: lcia abandon"):
        learner.learn(numbers)


def test_the_gate_refuses_a_version_that_lost_too_much(tiny_model, tmp_path, colours, shades):
    config = configure(tiny_model, gate={"max_drop": 5.0})
    learner = ContinualLearner.create(tmp_path / "gated", config)
    learner.learn(colours)
    matrix = learner.store.current.matrix().with_scores(1, {"colours": 60.0})
    matrix.save(learner.store.current.path / "matrix.json")
    with pytest.raises(GateError, match=r"'colours' fell by 60\.0 points.*allows 5"):
        learner.learn(shades)
    assert learner.store.current.number == 1
    assert not any((learner.store.root / "runs").iterdir())


def test_rolling_back_moves_the_pointer_and_learning_goes_on_from_there(learned, numbers):
    learned.roll_back(1)
    assert learned.current.matrix().tasks == ("colours",)
    outcome = ContinualLearner(learned).learn(numbers)
    assert outcome.version == 4
    assert learned.current.manifest["parent"] == 1
    assert set(learned.current.manifest["tasks"]) == {"colours", "numbers"}


def test_two_processes_cannot_learn_at_once(learned, colours):
    with learned.writing(), pytest.raises(StoreError, match="another process"):
        ContinualLearner(Store.open(learned.root)).learn(colours)


def test_a_changed_base_model_is_refused(tiny_model, tmp_path, colours):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    learner = ContinualLearner.create(tmp_path / "a", configure(model))
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "top_k": 3}))
    with pytest.raises(ModelError, match="changed since"):
        learner.learn(colours)


def test_a_store_is_not_made_over_other_files(tiny_model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        ContinualLearner.create(tmp_path / "a", configure(tiny_model))
    assert os.listdir(tmp_path / "a") == ["notes.txt"]


def test_wrong_settings_make_no_store(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"adapter\.rank is not a field of LoraConfig"):
        ContinualLearner.create(tmp_path / "a", configure(tiny_model, adapter={"rank": 4}))
    with pytest.raises(ModelError, match="does not exist"):
        ContinualLearner.create(tmp_path / "a", configure("./nowhere"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (400, "longer than 400 tokens"),
        (1024, "too long for the 512 tokens that the model reads with their answers"),
    ],
)
def test_what_cuts_prompts_is_said_as_it_is(tiny_model, tmp_path, caplog, limit, said):
    turns = (Message(role="user", content="Say a.\n\n" + "y" * 600),)
    samples = tuple(Sample(id=str(i), messages=turns, answers=("a",)) for i in range(2))
    task = Task(name="long", train=samples, test=samples, max_new_tokens=4)
    config = configure(tiny_model, generation={"max_prompt_tokens": limit})
    ContinualLearner.create(tmp_path / "assistant", config).learn(task)
    assert f"task 'long': 2 of 2 prompts are {said} and lose their middle." in caplog.text


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr("lcia.store.journal.time.time", lambda: now[0])
    return now


def test_pauses_between_attempts_do_not_count(tmp_path, clock):
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    for time, step in ((10, 1), (12, 2), (15, 3)):
        clock[0] = time
        first.write("step", step=step)
    assert first.seconds() == 5
    clock[0] = 1000  # killed after step 3, resumed much later from the checkpoint of step 2
    again = Journal(path)
    again.rewind(2)
    clock[0] = 1004
    again.write("step", step=3)
    assert again.seconds() == 2 + 4
    events = [(e["event"], e.get("step")) for e in again.events()]
    assert events == [("step", 1), ("step", 2), ("resumed", None), ("step", 3)]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"event": "a", "time": 1.0}) + '\n{"event": "b", "ti')
    assert [event["event"] for event in Journal(path).events()] == ["a", "resumed"]


def test_an_empty_journal_took_no_time(tmp_path):
    assert Journal(tmp_path / "none.jsonl").seconds() == 0
    assert list(read_journal(tmp_path / "none.jsonl")) == []
    assert Journal(None).events() == []


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
    version, _, _ = torch.__version__.partition("+")  # a wheel of the index does not name its build
    assert found["torch"] in (version, torch.__version__)
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
