"""What lcia adds to merging, and the methods as they were published."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import make_task
from lcia import Assistant
from lcia.config import AssistantConfig, GateConfig
from lcia.ema import DynamicEMA
from lcia.errors import ConfigError, StoreError
from lcia.grouping import Router
from lcia.learner import ContinualLearner, Store, consolidate, split_group
from lcia.learner.training import CARRIED
from lcia.live.database import Database
from lcia.live.jobs import Jobs
from lcia.live.orders import order
from lcia.live.worker import Worker
from lcia.registry import METHODS
from lcia.store import audit
from lcia.store.samples import REMEMBERED, VALIDATION, keep_with, kept_with, read_samples
from serving_server import lines_of


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.1, 2), (0.125, 2), (1, 16)])
def test_a_share_of_every_task_is_remembered_and_trained_on(built, numbers, share, count):
    kept = numbers.train[:3]
    opened = built("lcia", {"remembered": share}, remembered=kept)
    context = opened.context
    assert len(context.task.train) == 16
    assert opened.method.samples(context) == [*context.task.train, *kept]
    remembered = opened.method.remember(context)
    assert remembered[:3] == list(kept)
    assert len(set(remembered[3:])) == count == len(remembered) - 3
    assert set(remembered[3:]) <= set(context.task.train)


def test_a_group_that_is_opened_starts_without_the_memory_of_others(create, colours, numbers):
    learner = create({"name": "lcia", "remembered": 0.25})
    first, second = learner.run([colours, numbers])
    adapters = learner.store.current.adapters
    for outcome, task in ((first, colours), (second, numbers)):
        kept = read_samples(adapters[outcome.group][1] / "memory.jsonl")
        assert len(kept) == 4
        assert {sample.prompt for sample in kept} <= {sample.prompt for sample in task.train}


def test_more_than_everything_cannot_be_remembered():
    with pytest.raises(
        ConfigError, match=r"method\.remembered is 1\.5; expected a share .* 0 to 1"
    ):
        METHODS.get("lcia")(remembered=1.5)


@pytest.mark.parametrize(
    ("name", "rule", "below"),
    [("lcia_paper", "Paper", "nearest"), ("lcia_release", "Release", "latest")],
)
def test_a_reused_group_ends_as_its_average_and_keeps_nothing_else(
    name, rule, below, create, colours, shades, numbers, monkeypatch
):
    made = []
    start = DynamicEMA.__init__

    def seen(self, *args, **options):
        start(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(DynamicEMA, "__init__", seen)
    learner = create(name, rule="horizon")
    learner.run([colours, shades, numbers])
    assert [type(ema.rule).__name__ for ema in made] == [rule]  # only the group that was reused
    weights = load_file(learner.store.current.adapters["g1"][1] / "adapter_model.safetensors")
    shadow = {n.replace(".default", ""): v for n, v in made[0].shadow.items()}
    assert all(values.equal(shadow[n]) for n, values in weights.items())
    for _, folder in learner.store.current.adapters.values():
        assert not (folder / CARRIED).exists()
        assert not (folder / REMEMBERED).exists()
    grouping = learner.config.resolve_grouping()
    assert (grouping.aggregate, grouping.start, grouping.below) == ("mean", "fresh", below)


@pytest.mark.parametrize("name", ["lcia_paper", "lcia_release"])
def test_what_is_the_method_s_own_stays_and_the_rest_is_configured(name):
    grouping = {
        "aggregate": "best",
        "start": "latest",
        "threshold": 0.3,
        "similarity": "tfidf_unicode",
    }
    config = AssistantConfig(model="m", method=name, grouping=grouping).resolved()
    assert (config.grouping.aggregate, config.grouping.start) == ("mean", "fresh")
    assert (config.grouping.threshold, config.grouping.similarity) == (0.3, "tfidf_unicode")
    assert config.method == {"name": name}
    assert METHODS.get(name).settings == {}


MEASURED = {"name": "lcia", "validation": 0.25, "remembered": 0.1}
INSTRUCTION = "Say the letter."


class Killed(BaseException):
    """Stands for the process dying."""


def letters(name, answers, *, count=48):
    return make_task(name, INSTRUCTION, answers, train=count, test=8)


@pytest.fixture(scope="module")
def able_model(tiny_model, tmp_path_factory):
    """The tiny model with large logits: what it learns it can be sure of."""
    folder = tmp_path_factory.mktemp("models") / "able"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks():
    """Two that overwrite each other: the same instruction, other words, other answers."""
    return (
        letters("animals", {"horse": "a", "sheep": "a"}),
        letters("tools", {"hammer": "z", "pliers": "z"}),
    )


def configure(model, **method) -> AssistantConfig:
    return AssistantConfig(
        model=str(model),
        dtype="float32",
        method={**MEASURED, **method},
        adapter={"r": 8, "lora_alpha": 32},
        training={"learning_rate": 1e-2, "num_train_epochs": 4, "per_device_train_batch_size": 4},
    )


@pytest.fixture(scope="module")
def learned(able_model, tmp_path_factory, tasks):
    root = tmp_path_factory.mktemp("measured") / "assistant"
    learner = ContinualLearner.create(root, configure(able_model))
    return learner, learner.run(tasks)


def test_tasks_that_overwrite_each_other_get_a_sibling_and_lose_nothing(learned):
    learner, (first, second) = learned
    assert (first.group, second.group, second.reason) == ("g1", "g2", "expand")
    assert second.choice["chosen"] == "expand"
    assert second.scores == {"animals": 100.0, "tools": 100.0}
    rows = {row["name"]: row for row in second.choice["table"]}
    assert rows.keys() == {"trained", "expand"}, "nothing else competes with a sibling"
    assert rows["expand"]["parameters"] == "trained"
    assert rows["expand"]["harmed"] == []
    assert rows["expand"]["losses"]["animals"] <= rows["trained"]["losses"]["animals"]
    assert learner.store.verify() == []


def test_where_a_sibling_costs_too_much_every_way_of_retraining_is_measured(
    able_model, tmp_path, tasks
):
    learner = ContinualLearner.create(tmp_path / "assistant", configure(able_model, price=0.9))
    _, second = learner.run(tasks)
    rows = {row["name"]: row for row in second.choice["table"]}
    paths = {"precision-0.3", "precision-1", "average-precision-0.3"}
    assert rows.keys() == {"trained", "expand", *paths}
    assert rows["trained"]["harmed"] == ["animals"]
    assert len({row["samples"] for row in rows.values()}) == 1, "all on the same samples"
    assert second.group == "g1" and second.choice["chosen"] in {"trained", *paths}


def test_siblings_are_told_apart_by_what_prompts_are_about(learned):
    router = Router(learned[0].store.current.codebook())
    for word, group in (("sheep", "g1"), ("pliers", "g2")):
        decision = router.route(f"{INSTRUCTION}\n\n{word} 7")
        assert (decision.group, decision.reason) == (group, "content")
    unknown = router.route(f"{INSTRUCTION}\n\nquartz")
    assert (unknown.group, unknown.reason) == ("g1", "reached")  # opened first: cannot tell


def test_held_back_samples_stay_with_their_group_and_are_not_trained_on(learned, tasks):
    adapters = learned[0].store.current.adapters
    for (group, (_, folder)), task in zip(sorted(adapters.items()), tasks, strict=True):
        held = kept_with(folder, VALIDATION)
        assert [name for _, name in held] == [task.name] * 12, group
        assert {sample for sample, _ in held} <= set(task.train)


def steps_of(learner) -> list[int]:
    return [
        max(event["step"] for event in version.journal() if event["event"] == "step")
        for version in learner.store.history()
    ]


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"opening": 0}, [36, 36]),
        ({}, [48, 48]),
        ({"price": 0.9}, [48, 44]),  # the group may keep it: 36 and 5 remembered
    ],
)
def test_a_task_that_most_likely_opens_a_sibling_is_trained_alone(
    able_model, tmp_path, tasks, more, steps
):
    learner = ContinualLearner.create(tmp_path / "assistant", configure(able_model, **more))
    learner.run(tasks)
    assert steps_of(learner) == steps
    kept = [kept_with(folder, VALIDATION) for _, folder in learner.store.current.adapters.values()]
    assert sorted(name for group in kept for _, name in group) == ["animals"] * 12 + ["tools"] * 12


def test_a_task_that_opens_a_group_may_train_on_what_it_holds_back(able_model, tmp_path, tasks):
    learner = ContinualLearner.create(tmp_path / "assistant", configure(able_model, opening=1))
    again = letters("more_animals", {"horse": "a", "sheep": "a"})
    learner.run([tasks[0], again])
    # 48 samples; then 36 and the 5 remembered ones: 4 epochs in batches of 4
    assert steps_of(learner) == [48, 44]
    _, folder = learner.store.current.adapters["g1"]
    held = {(name, s) for s, name in kept_with(folder, VALIDATION)}
    remembered = {(name, s) for s, name in kept_with(folder, REMEMBERED)}
    assert len(held) == 24 and remembered and not held & remembered


def test_a_task_that_adds_nothing_new_retrains_its_group(learned, tasks, able_model, tmp_path):
    learner = ContinualLearner.create(tmp_path / "assistant", configure(able_model))
    again = letters("more_animals", {"horse": "a", "sheep": "a"})
    first, second = learner.run([tasks[0], again])
    assert (first.group, second.group) == ("g1", "g1")
    assert second.choice["chosen"] != "expand"
    assert second.scores == {"animals": 100.0, "more_animals": 100.0}


def test_with_nothing_remembered_no_sample_stays_and_the_estimate_stands_in(
    able_model, tmp_path, tasks
):
    root = tmp_path / "assistant"
    learner = ContinualLearner.create(root, configure(able_model, remembered=0))
    _, second = learner.run(tasks)
    assert second.choice["unmeasured"] == 1
    assert list(second.choice["samples"]) == ["tools"]
    kept = [path.name for path in root.glob("groups/**/*.jsonl")]
    assert kept == []
    books = "".join(path.read_text() for path in root.glob("versions/*/codebook.json"))
    prompts = [sample.prompt for task in tasks for sample in task.train]
    assert not [prompt for prompt in prompts if json.dumps(prompt)[1:-1] in books]


@pytest.mark.parametrize("moment", ["chosen", "answering"])
def test_killed_while_it_chooses_ends_like_the_undisturbed_one(
    moment, learned, able_model, tmp_path, tasks
):
    def dies(event):
        if event["event"] == moment and event.get("what", "after") == "after":
            raise Killed

    root = tmp_path / "assistant"
    ContinualLearner.create(root, configure(able_model)).learn(tasks[0])
    with pytest.raises(Killed):
        ContinualLearner(Store.open(root), listener=dies).learn(tasks[1])
    ContinualLearner(Store.open(root)).learn(tasks[1])
    found, straight = Store.open(root).current, learned[0].store.current
    assert found.manifest["choice"]["chosen"] == straight.manifest["choice"]["chosen"]
    for group, (_, folder) in straight.adapters.items():
        expected = load_file(folder / "adapter_model.safetensors")
        made = load_file(found.adapters[group][1] / "adapter_model.safetensors")
        assert all(made[name].equal(tensor) for name, tensor in expected.items())


# Joining again


@pytest.fixture(scope="module")
def helped(able_model, tmp_path_factory, tasks):
    """Two tasks that one group learned, split into two groups with the same adapter."""
    root = tmp_path_factory.mktemp("helped") / "assistant"
    gate = GateConfig(max_kl=100, max_rise=100)  # of so small a model nothing general stays
    settings = configure(able_model).model_copy(update={"gate": gate})
    learner = ContinualLearner.create(root, settings)
    learner.run([tasks[0], letters("more_animals", {"horse": "a", "sheep": "a"})])
    split_group(learner, "g1", ["more_animals"])
    return learner


def copied(learner, folder) -> ContinualLearner:
    root = shutil.copytree(learner.store.root, folder / "copy")
    return ContinualLearner(Store.open(root), host=learner.host)


def test_groups_that_one_adapter_serves_as_well_are_joined(helped, tmp_path):
    learner = copied(helped, tmp_path)
    (joining,) = consolidate(learner)
    assert (joining.group, joining.other, joining.why_not) == ("g1", "g2", "")
    assert joining.before.keys() == joining.after.keys() == {"animals", "more_animals"}
    assert all(joining.after[task] >= joining.before[task] - 1e-3 for task in joining.before)
    current = learner.store.current
    assert [group.id for group in current.codebook().groups] == ["g1"]
    assert current.matrix().row(current.matrix().learned) == {"animals": 100, "more_animals": 100}
    held = {task for _, task in kept_with(current.adapters["g1"][1], VALIDATION)}
    assert held == {"animals", "more_animals"}, "what it is measured by stays"
    assert learner.store.verify() == []
    assert consolidate(learner) == []


def test_groups_that_a_merge_would_harm_stay(learned, tmp_path):
    learner = copied(learned[0], tmp_path)
    before = learner.store.current_number
    (joining,) = consolidate(learner)
    assert joining.harmed
    assert joining.why_not == f"one adapter harms {', '.join(joining.harmed)}"
    assert learner.store.current_number == before


def test_a_merge_that_harms_is_rehearsed_with_what_both_groups_remember(learned, tasks, tmp_path):
    learner = copied(learned[0], tmp_path)
    adapters = learner.store.current.adapters
    for (_, (_, folder)), task in zip(sorted(adapters.items()), tasks, strict=True):
        held = {sample for sample, _ in kept_with(folder, VALIDATION)}
        keep_with(folder, REMEMBERED, [(s, task.name) for s in task.train if s not in held])
    (joining,) = consolidate(learner)
    assert joining.rehearsed and joining.why_not == "", joining
    current = learner.store.current
    assert list(current.adapters) == ["g1"]
    held = kept_with(current.adapters["g1"][1], VALIDATION)
    answers = Assistant.open(learner.store.root).answer_many([s.prompt for s, _ in held])
    assert [answer.text for answer in answers] == [sample.answers[0] for sample, _ in held]
    assert current.manifest["note"] == "join g1 and g2"
    kept = kept_with(current.adapters["g1"][1], REMEMBERED)
    assert {task for _, task in kept} == {"animals", "tools"}


def test_what_the_gate_refuses_is_not_joined(helped, tmp_path):
    learner = copied(helped, tmp_path)
    before, gate = learner.store.current_number, {"tests": "all", "max_rise": 100}
    learner.config = learner.config.model_copy(update={"gate": GateConfig(**gate, max_kl=0)})
    (joining,) = consolidate(learner)
    assert not joining.harmed
    assert joining.why_not.startswith("gate: KL on untaught prompts rose by ")
    assert learner.store.current_number == before
    learner.config = learner.config.model_copy(update={"gate": GateConfig(**gate, max_kl=100)})
    assert consolidate(learner)[0].why_not == ""
    assert learner.store.current_number == before + 1


def test_an_idle_worker_joins_groups_and_a_job_comes_first(helped, tmp_path, monkeypatch):
    root = copied(helped, tmp_path).store.root
    worker, steps = Worker(root, Database(root), consolidate_after=0.0), []

    def ordered(jobs):  # while it rehearses
        steps.append(Store.open(root).current_number)
        if len(steps) == 1:
            file = worker.files.add("more.jsonl", lines_of(letters("more", {"cow": "a"}, count=8)))
            fields = order(Store.open(root), task="more", hyperparameters={"n_epochs": 1})
            worker.jobs.create(training_file=file["id"], **fields)
        return waiting(jobs)

    waiting = Jobs.waiting
    monkeypatch.setattr(Jobs, "waiting", ordered)
    worker.run(until_empty=True)
    store, before = Store.open(root), helped.store.current_number
    assert len(steps) > 1 and steps[0] == before, "it began, gave way, and began anew"
    assert store.version(before + 1).manifest["task"] == "more"
    joined = store.version(before + 2).manifest
    assert (joined["task"], joined["note"]) == (None, "join g1 and g2")
    assert store.current_number == before + 2
    told = audit.entries(root)[-1]
    assert (told["what"], told["who"]) == ("groups changed", "idle worker")


def test_a_worker_waits_before_it_joins_groups(helped, tmp_path):
    root = copied(helped, tmp_path).store.root
    for after in (None, 3600.0):
        Worker(root, Database(root), consolidate_after=after).run(until_empty=True)
    assert Store.open(root).current_number == helped.store.current_number


def test_a_dry_run_measures_and_changes_nothing(helped, tmp_path):
    learner = copied(helped, tmp_path)
    before, told = learner.store.current_number, []
    assert consolidate(learner, dry_run=True, tell=told.append) == told
    assert [joining.why_not for joining in told] == [""]
    assert learner.store.current_number == before


def test_groups_that_changed_while_they_were_measured_are_not_joined(helped, tmp_path):
    learner = copied(helped, tmp_path)
    again = letters("still_animals", {"horse": "a", "sheep": "a"})

    def learns_meanwhile(_):
        learner.listener = None
        ContinualLearner(Store.open(learner.store.root)).learn(again)

    learner.listener = learns_meanwhile
    with pytest.raises(StoreError, match=r"group g\d was changed .* run the command again"):
        consolidate(learner)
    current = Store.open(learner.store.root).current
    assert current.manifest["task"] == "still_animals"
    assert list(current.adapters) == ["g1", "g2"]


def test_what_cannot_be_measured_is_not_joined(helped, tmp_path):
    learner = copied(helped, tmp_path)
    (learner.store.current.adapters["g2"][1] / VALIDATION).unlink()
    (joining,) = consolidate(learner)
    assert "no validation samples of more_animals are kept" in joining.why_not
    assert len(learner.store.current.codebook().groups) == 2


def test_the_command_says_what_came_of_each_pair(helped, tmp_path):
    root = copied(helped, tmp_path).store.root

    def consolidated(*options):
        command = [sys.executable, "-m", "lcia", "groups", "consolidate", str(root), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (found,) = json.loads(consolidated("--dry-run", "--json"))
    assert (found["group"], found["other"], found["why_not"]) == ("g1", "g2", "")
    said = consolidated()
    assert "g1 and g2 joined" in said
    assert "animals: quality 1.000 apart, 1.000 as one" in said
    assert f"Back: lcia rollback {root} 3" in said
