"""Corrections change the answer, wherever the group knew something else, and nothing beside it."""

import shutil

import pytest

from conftest import make_task
from lcia import Assistant
from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.learner import ContinualLearner, Store
from lcia.store.samples import REMEMBERED, kept_with
from serving_server import COLOUR, NUMBER

KNOWS = {"max_steps": 60, "learning_rate": 1e-2, "save_steps": 7}
INSTRUCTION = COLOUR.partition("\n")[0]


def make(root, model, *, method="lcia", **settings):
    """An assistant whose groups g1, of colours, and g2, of numbers, know what they were taught."""
    if method in ("lcia", "replay"):  # the tiny model needs more to hold on to than the default
        method = {"name": method, **({"remembered": 0.5} if method == "lcia" else {})}
    settings |= {"model": str(model), "method": method, "training": KNOWS}
    config = AssistantConfig(dtype="float32", **settings)
    learner = ContinualLearner.create(root, config)
    learner.learn(make_task("colours", INSTRUCTION, {"red": "r", "green": "g"}))
    learner.learn(make_task("numbers", NUMBER.partition("\n")[0], {"one": "1", "two": "2"}))
    return learner.store


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return make(tmp_path_factory.mktemp("made") / "assistant", tiny_model)


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "assistant")
    return Store.open(tmp_path / "assistant")


def corrections(answers, *, name="corrected"):
    samples = tuple(
        Sample(
            id=f"feedback-{i}",
            messages=(Message(role="user", content=prompt),),
            answers=(answer,),
        )
        for i, (prompt, answer) in enumerate(answers.items())
    )
    return Task(name=name, train=samples, test=samples, corrects=True, max_new_tokens=4)


def teach(store, task, *, listener=None, steps=200):
    learner = ContinualLearner(store, listener=listener)
    training = {**store.config.training, "max_steps": steps}
    learner.config = store.config.model_copy(update={"training": training})
    return learner.learn(task)


def answers(store, prompts):
    found = Assistant.open(store.root).answer_many(list(prompts), max_new_tokens=4)
    return [answer.text for answer in found]


def old_prompts():
    return {
        **{f"{INSTRUCTION}\n\n{w} {i}": w[0] for i in range(20, 26) for w in ("red", "green")},
        **{NUMBER.replace("two 7", f"{w} {i}"): d for i in (8, 9) for w, d in (("one", "1"),)},
    }


def test_one_correction_prevails_and_the_rest_stays(store):
    assert answers(store, [COLOUR]) == ["g"]
    before = answers(store, old_prompts())
    outcome = teach(store, corrections({COLOUR: "x"}))
    assert outcome.group == "g1"
    assert answers(store, [COLOUR]) == ["x"]
    after = answers(store, old_prompts())
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= len(before) - 1
    (taught,) = [e for e in store.current.journal() if e["event"] == "taught"]
    assert (taught["held"], taught["corrections"]) == (1, 1)
    assert taught["step"] < 60


def test_twenty_corrections_of_one_kind_are_learned_as_a_kind(store):
    asked = [f"{INSTRUCTION}\n\ngreen {i}" for i in range(100, 130)]
    teach(store, corrections(dict.fromkeys(asked[:20], "x")))
    assert answers(store, asked[:20]) == ["x"] * 20
    assert answers(store, asked[20:]).count("x") >= 9
    assert answers(store, [f"{INSTRUCTION}\n\nred {i}" for i in range(20, 30)]).count("r") >= 9


@pytest.mark.parametrize("method", ["lcia", "lcia_release", "merge", "sequential", "replay"])
def test_a_correction_holds_whatever_the_method_makes_of_it(tmp_path, tiny_model, method):
    store = make(tmp_path / "assistant", tiny_model, method=method, grouping="on")
    teach(store, corrections({COLOUR: "x"}))
    assert answers(store, [COLOUR]) == ["x"]


def test_what_is_remembered_of_a_corrected_conversation_is_the_correction(store):
    remembered = kept_with(store.current.adapters["g1"][1], REMEMBERED)
    prompt = remembered[0][0].prompt
    teach(store, corrections({prompt: "x"}))
    kept = kept_with(store.current.adapters["g1"][1], REMEMBERED)
    assert [s.answers for s, _ in kept if s.prompt == prompt] == [("x",)]
    assert len(kept) == len(remembered)
    assert answers(store, [prompt]) == ["x"]


def test_corrections_of_prompts_that_reach_no_group_are_placed_as_any_task(store):
    words = {f"Weigh this fruit, please: fruit {i}": "h" for i in range(6)}
    assert teach(store, corrections(words)).group == "g3"


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [3, 9, 15])
def test_killed_and_resumed_it_ends_with_the_same_step_to_the_bit(store, tmp_path, step):
    straight = Store.open(shutil.copytree(store.root, tmp_path / "straight"))
    task = corrections({f"{INSTRUCTION}\n\ngreen {i}": "x" for i in range(100, 112)})
    teach(straight, task)

    def kill(event):
        if event["event"] == "step" and event["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        teach(store, task, listener=kill)
    teach(store, task)
    weights = [s.current.adapters["g1"][1] / "adapter_model.safetensors" for s in (store, straight)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    steps = [
        [e["step"] for e in s.current.journal() if e["event"] == "taught"]
        for s in (store, straight)
    ]
    assert steps[0] == steps[1]
    assert steps[0][0] > step
