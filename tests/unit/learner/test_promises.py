"""What a store promises: nothing lost, nothing kept that should not be, every damage found."""

import os
import shutil
from dataclasses import replace

import pytest

from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.distributed.checkpoint import last_checkpoint
from lcia.errors import LciaError, StoreError
from lcia.files import read_sealed, write_sealed
from lcia.learner import ContinualLearner, Store, rename_group
from lcia.store import audit
from lcia.store.fingerprint import LATER, WITHOUT_EFFECT, fingerprint
from lcia.store.transaction import begin, clear, refuse, refused, unfinished
from lcia.store.verify import verify
from lcia.store.version import check_proposal

TRAINING = {"num_train_epochs": 1, "learning_rate": 1e-2, "save_steps": 1}


class Killed(BaseException):
    """Stands for the process dying."""


def configure(model, **settings) -> AssistantConfig:
    tree = {"dtype": "float32", "training": TRAINING, "adapter": {"r": 2}, **settings}
    return AssistantConfig(model=str(model), **tree)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, colours, numbers):
    """An assistant of two groups, and a third task killed in training."""
    root = tmp_path_factory.mktemp("promises") / "a"
    learner = ContinualLearner.create(root, configure(model))
    learner.run([colours, numbers])
    return root, learner.host


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "a")
    return tmp_path / "a"


@pytest.fixture
def cut(root, made, shades):
    """The same, with a task that died in its second step."""

    def dies(event):
        if event["event"] == "step" and event["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        ContinualLearner(Store.open(root), host=made[1], listener=dies).learn(shades)
    return root


def files_of(root):
    return [p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size]


def test_any_changed_byte_in_any_file_is_found(cut):
    assert verify(cut) == []
    for path in files_of(cut):
        whole = path.read_bytes()
        for i, place in enumerate({*range(0, len(whole), len(whole) // 4 + 1), len(whole) - 1}):
            changed = bytes([whole[place] ^ (1, 128)[i % 2]])
            path.write_bytes(whole[:place] + changed + whole[place + 1 :])
            findings = verify(cut)
            assert any(path.name in line for line in findings), f"{path}, byte {place}: {findings}"
            assert all("\n" not in line for line in findings)
        path.write_bytes(whole)
    assert verify(cut) == []


def test_a_missing_and_an_added_file_are_found(root):
    victim = next((root / "tasks").rglob("samples.jsonl"))
    content = victim.read_bytes()
    victim.unlink()
    assert any("is missing" in line for line in Store.open(root).verify())
    victim.write_bytes(content)
    (victim.parent / "extra.json").write_text("{}")
    assert any("extra.json" in line and "not one of" in line for line in Store.open(root).verify())


def test_what_a_kill_left_of_an_adapter_half_written_is_in_no_version(cut, made, shades):
    (run,) = (cut / "runs").iterdir()
    draft = run / ".adapter-draft"
    draft.mkdir()
    (draft / ".tmpA1b2C3").write_bytes(b"half of an adapter")  # as safetensors names it
    ContinualLearner(Store.open(cut), host=made[1]).learn(shades)
    assert not list(cut.rglob(".tmp*"))
    assert verify(cut) == []


def test_power_that_failed_while_a_candidate_moved_leaves_one_of_it(root, shades, made):
    store = Store.open(root)
    run = begin(store, shades.name, lambda schema: "made of something")
    folder = refuse(store, run, {"why": "", "before": {}, "after": {}})
    shutil.copytree(folder, run.folder)  # both names are there
    clear(store)
    assert (unfinished(store), list(refused(store))) == (None, [3])


@pytest.mark.parametrize("where", ["settle", "audit.record", "sync_folder"])
def test_a_refusal_is_told_once_wherever_it_was_killed(where, root, shades, monkeypatch):
    store = Store.open(root)
    run = begin(store, shades.name, lambda schema: "made of something")

    def killed(*args, **options):
        raise Killed

    with monkeypatch.context() as during, pytest.raises(Killed):
        during.setattr(f"lcia.store.transaction.{where}", killed)
        refuse(store, run, {"why": "", "before": {}, "after": {}})
    if not refused(store):  # else the same command says so and goes no further
        refuse(store, unfinished(store), {"why": "", "before": {}, "after": {}})
    told = [(e["version"], e["task"]) for e in audit.entries(root) if e["what"] == "refused"]
    assert (told, list(refused(store))) == ([(3, shades.name)], [3])


def test_rolling_back_to_the_version_in_force_is_no_change_to_tell(root):
    store = Store.open(root)
    before = audit.entries(root)
    assert store.roll_back(store.current_number).number == 2
    assert audit.entries(root) == before


def test_a_damaged_checkpoint_is_refused_and_the_named_remedy_works(cut, made, shades):
    (run,) = (cut / "runs").iterdir()
    newest = last_checkpoint(run / "checkpoints")
    path = newest / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreError, match=r"differs from its checksum.*delete .*checkpoint-1"):
        ContinualLearner(Store.open(cut), host=made[1]).learn(shades)
    shutil.rmtree(newest)
    assert ContinualLearner(Store.open(cut), host=made[1]).learn(shades).version == 3


def test_half_a_checkpoint_without_checksums_is_not_resumed_from(tmp_path):
    for step, names in ((1, ["adapter_config.json", "adapter_model.safetensors"]), (2, [])):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "complete.json").write_text('{"step": 1}')
        for name in names:
            (folder / name).write_text("{}")
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-1"


def test_learning_again_after_a_rollback_replaces_no_file_of_another_version(root, made, numbers):
    before = {p: (p.stat().st_ino, p.read_bytes()) for p in files_of(root / "tasks")}
    Store.open(root).roll_back(1)
    renamed = replace(numbers, test=tuple(replace(s, id=f"x{s.id}") for s in numbers.test))
    outcome = ContinualLearner(Store.open(root), host=made[1]).learn(renamed)
    assert {p: (p.stat().st_ino, p.read_bytes()) for p in before} == before
    assert outcome.group == "g3", "an id is not used again"
    store = Store.open(root)
    assert store.verify() == []
    assert [s.id for s in store.current.tasks()[1].test] == [s.id for s in renamed.test]
    assert [s.id for s in store.version(2).tasks()[1].test] == [s.id for s in numbers.test]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_no_character_in_a_sample_makes_a_store_unreadable(root, made, numbers, mark):
    def odd(sample: Sample) -> Sample:
        return replace(sample, messages=(Message(role="user", content=f"{sample.prompt}{mark}!"),))

    task = replace(
        numbers,
        name="odd",
        train=tuple(map(odd, numbers.train)),
        test=tuple(map(odd, numbers.test)),
    )
    ContinualLearner(Store.open(root), host=made[1]).learn(task)
    store = Store.open(root)
    assert store.verify() == []
    assert [s.prompt for s in store.current.tasks()[-1].test] == [s.prompt for s in task.test]
    assert any(mark in p.prompt for p in store.current.predictions())


def test_groups_are_scored_as_learning_scores_them(tmp_path, model, made, colours, shades):
    learner = ContinualLearner.create(
        tmp_path / "single", configure(model, method="single"), host=made[1]
    )
    learner.run([colours, shades])
    before = learner.store.current
    assert {p.reason for p in before.predictions()} == {"task_given"}
    version = rename_group(learner, "g2", "letters")
    assert version.predictions() == before.predictions()
    assert version.matrix() == before.matrix()


def test_a_store_without_memory_keeps_no_training_prompt(tmp_path, model, made):
    def sample(i: int) -> Sample:
        word = f"{'abcdefgh'[i % 8]}{'klmnopqr'[i // 8]}secret{i}"
        return Sample(
            id=str(i),
            messages=(Message(role="user", content=f"{word} tell {word[::-1]}"),),
            answers=("y",),
        )

    task = Task(
        name="secrets",
        train=tuple(map(sample, range(16))),
        test=tuple(map(sample, range(40, 44))),
        max_new_tokens=1,
    )
    config = configure(model, method={"name": "lcia", "remembered": 0})
    learner = ContinualLearner.create(tmp_path / "a", config, host=made[1])
    learner.learn(task)
    content = {p: p.read_bytes() for p in files_of(tmp_path / "a")}
    for known in task.train:
        found = [p for p, text in content.items() if known.prompt.encode() in text]
        assert not found, known.prompt
    assert learner.router().route("zz tell yy").group == "g1"


def test_a_setting_that_comes_later_changes_no_fingerprint_at_its_default(model, numbers):
    class Later(AssistantConfig):
        a_new_one: int = 3

    settings = {"model": str(model), "dtype": "float32"}
    for schema in (1, 2):
        now = fingerprint(AssistantConfig(**settings), numbers, model="m", schema=schema)
        assert fingerprint(Later(**settings), numbers, model="m", schema=schema) == now
        other = AssistantConfig(**settings, seed=1)
        assert fingerprint(other, numbers, model="m", schema=schema) != now


def test_a_renamed_setting_is_hashed_under_its_first_name(numbers):
    method, rule = {"name": "lcia", "remembered": 0.5}, {"name": "toolkit", "scale": 0.5}
    now = AssistantConfig(model="m", method=method, rule=rule)
    first = {"method": {"name": "lcia", "memory": 0.5}, "rule": {"name": "next", "scale": 0.5}}
    before = now.model_copy(update=first)
    for schema in (1, 2):
        made = {fingerprint(c, numbers, model="m", schema=schema) for c in (now, before)}
        assert len(made) == 1


def test_the_fingerprint_decides_about_every_setting():
    spelt_out = {
        "model", "method", "rule", "grouping", "adapter", "training", "projector", "pad_images",
        "quantize", "generation", "dtype", "seed",
    }  # fmt: skip
    later = {path.partition(".")[0] for path in LATER}
    missing = set(AssistantConfig.model_fields) - spelt_out - later - WITHOUT_EFFECT
    assert not missing, f"say in store/fingerprint.py whether these change a result: {missing}"


OUTSIDE = ["/etc/0001/x", "../groups/g1/0001", "groups/../../x", "groups/g1/../../..", "groups/g1"]


@pytest.mark.parametrize("place", OUTSIDE)
def test_a_path_that_leaves_the_store_is_refused(root, place):
    path = root / "versions" / "0002" / "manifest.json"
    manifest = read_sealed(path)
    write_sealed(path, {**manifest, "groups": {"g1": {"adapter": place}}})
    with pytest.raises(StoreError, match="expected a folder of the store"):
        Store.open(root)
    write_sealed(path, {**manifest, "tasks": {"colours": place}})
    with pytest.raises(StoreError, match="expected a folder of the store"):
        Store.open(root)


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_links_and_pipes_in_a_store_are_refused(root, tmp_path, kind):
    adapter = next((root / "groups").rglob("adapter_model.safetensors"))
    if kind == "folder":
        shutil.move(adapter.parent, tmp_path / "elsewhere")
        adapter.parent.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.move(adapter, tmp_path / "elsewhere")
        if kind == "file":
            adapter.symlink_to(tmp_path / "elsewhere")
        else:
            os.mkfifo(adapter)
    with pytest.raises(StoreError, match=r"link|neither file nor folder"):
        Store.open(root)


def test_an_adapter_that_claims_more_than_its_file_holds_is_refused(root):
    import json

    path = root / "groups" / "g1" / "0001" / "adapter_config.json"
    config = json.loads(path.read_text())
    for claim in ({"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}, {"r": "8"}, {"r": None}):
        path.write_text(json.dumps({**config, **claim}))
        with pytest.raises(StoreError, match=r"has rank .*the weights beside it have at most 2"):
            Store.open(root)


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{}", b"[" * 200_000, b'{"schema": 1}', b"null", b"\x00" * 99]
)
@pytest.mark.parametrize("name", ["assistant.json", "versions/0002/manifest.json"])
def test_hostile_records_are_one_line(root, name, damage):
    (root / name).write_bytes(damage)
    with pytest.raises(LciaError) as caught:
        Store.open(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [*OUTSIDE, "tasks/../x", "tasks/a/../../x"])
def test_a_run_cannot_propose_a_path_outside_the_store(root, place):
    good = {"adapters": {"g1": "adapter"}, "task": "tasks/a/0001"}
    check_proposal(good, root)
    for bad in ({"task": place}, {"adapters": {"../g1": "adapter"}}, {"adapters": {"g1": "../x"}}):
        with pytest.raises(StoreError, match="expected a folder of the"):
            check_proposal({**good, **bad}, root)
