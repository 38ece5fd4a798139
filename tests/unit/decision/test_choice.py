"""What a retrained group becomes, decided on validation samples: by sums worked out by hand."""

import math
import shutil
from itertools import count

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from conftest import make_task
from lcia import Assistant
from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.decision.choice import Candidate, Measured, choose, quadratic_scale, standard_error
from lcia.decision.measuring import BATCH, LowerLayers, Way, measure
from lcia.decision.placing import hold_back
from lcia.learner import ContinualLearner, Store, load_host
from lcia.store.samples import REMEMBERED, kept_with
from serving_server import COLOUR, NUMBER


def measured(quality) -> Measured:
    """Answers of a quality: as sure of them as right in them."""
    values = np.array(quality, float)
    return Measured(losses=-np.log(values), given=values)


BEFORE = {"old": measured([0.8, 0.8, 0.8, 0.8])}


def candidate(name, old, new, **more) -> Candidate:
    return Candidate(name=name, measured={"old": measured(old), "new": measured(new)}, **more)


def chosen(*candidates, price=0.05, **more):
    return choose("new", list(candidates), BEFORE, price=price, **more)


def test_quality_is_the_mean_of_how_sure_and_of_how_right_an_answer_is():
    # certain of a right answer; even odds and half of it right; certain of another
    one = Measured(losses=np.array([0.0, math.log(2), 50.0]), given=np.array([1.0, 0.5, 0.0]))
    assert one.quality == pytest.approx([1.0, 0.5, 0.0])
    assert one.exact.tolist() == [1.0, 0.0, 0.0]


def test_answers_that_turn_over_are_seen_where_the_loss_is_not():
    """A task near chance: the mean loss falls, and three of four answers turn wrong."""
    before = {"old": Measured(losses=np.full(4, 0.36), given=np.ones(4))}
    turned = Measured(losses=np.full(4, 0.35), given=np.array([1.0, 0.0, 0.0, 0.0]))
    kept = Measured(losses=np.full(4, 0.37), given=np.ones(4))
    options = [
        Candidate(name=name, measured={"old": old, "new": measured([0.6] * 4)})
        for name, old in (("trained", turned), ("straight-0.5", kept))
    ]
    choice = choose("new", options, before, price=0.05)
    assert {row["name"]: row["harmed"] for row in choice.table}["trained"] == ["old"]
    assert choice.chosen == "straight-0.5"


def test_the_standard_error_is_that_of_a_paired_mean():
    # mean 2, squared deviations 1 + 1 + 1 + 1 over n - 1 = 3, over n = 4
    assert standard_error(np.array([1.0, 3.0, 1.0, 3.0])) == pytest.approx((4 / 3 / 4) ** 0.5)
    assert standard_error(np.array([5.0])) == 0


def test_a_candidate_that_harms_an_earlier_task_comes_after_one_that_does_not():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)  # higher mean: 0.7125
    harmless = candidate("straight-0.5", [0.8, 0.8, 0.8, 0.8], [0.5] * 4)  # 0.65
    choice = chosen(harmful, harmless)
    assert choice.chosen == "straight-0.5"
    assert {row["name"]: row["harmed"] for row in choice.table} == {
        "trained": ["old"],
        "straight-0.5": [],
    }


def test_a_fall_within_half_its_standard_error_is_no_harm():
    # falls 0.1, -0.1, 0.2, -0.1: mean 0.025, deviations give a standard error of 0.075
    noisy = candidate("trained", [0.7, 0.9, 0.6, 0.9], [0.9] * 4)
    other = candidate("straight-0.5", [0.8] * 4, [0.5] * 4)
    assert chosen(noisy, other).chosen == "trained"
    # falls 0.2, 0, 0.2, -0.1: mean 0.075 of 0.075
    assert chosen(candidate("trained", [0.6, 0.8, 0.6, 0.9], [0.9] * 4), other).chosen != "trained"


def test_a_sibling_is_opened_if_it_alone_harms_nothing():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)
    sibling = candidate("expand", [0.8] * 4, [0.9] * 4)
    assert chosen(harmful, sibling, price=0.1).chosen == "expand"


def test_it_is_opened_even_if_retraining_scores_a_little_higher():
    harmful = candidate("straight-0.5", [0.7] * 4, [0.9] * 4)  # 0.8, and lowers old by 0.1
    sibling = candidate("expand", [0.8] * 4, [0.76] * 4, parameters="trained")  # 0.78
    choice = chosen(harmful, sibling, price=0.01)
    assert (choice.chosen, choice.parameters) == ("expand", "trained")
    assert chosen(harmful, sibling, price=0.05).chosen == "straight-0.5"


@pytest.mark.parametrize("old", [[0.8] * 4, [0.5] * 4])  # harmless, and not
def test_a_higher_price_never_opens_more_groups(old):
    retrained = candidate("trained", old, [0.7] * 4)
    for quality in (0.5, 0.7, 0.9):
        sibling = candidate("expand", [0.8] * 4, [quality] * 4)
        opened = [
            chosen(retrained, sibling, price=price).chosen == "expand"
            for price in (0, 0.01, 0.03, 0.1, 0.3, 1)
        ]
        assert opened == sorted(opened, reverse=True), (old, quality)
        assert not opened[-1]


@pytest.mark.parametrize(("price", "expected"), [(0.24, "expand"), (0.26, "trained")])
def test_else_a_sibling_has_to_be_worth_its_price(price, expected):
    retrained = candidate("trained", [0.8] * 4, [0.4] * 4)  # score 0.6
    # 0.8: higher by 0.2; what four samples do not show is 0.25 / sqrt(4 * 3) a task, 0.051 of both
    sibling = candidate("expand", [0.8] * 4, [0.8] * 4)
    choice = chosen(retrained, sibling, price=price)
    assert choice.chosen == expected
    assert "0.200" in choice.why


def test_retraining_has_to_be_shown_to_be_as_good():
    """It wins where the difference is certain, and loses the same one where that is noise."""
    sibling = candidate("expand", [0.8] * 4, [0.7] * 4)
    certain = candidate("trained", [0.8] * 4, [0.69] * 4)  # lower by 0.005, always
    assert chosen(certain, sibling, price=0.07).chosen == "trained"
    # lower by 0.005, too; differences of 0.2, -0.2, 0.2, -0.24: 0.079 with what is not seen
    noisy = candidate("trained", [0.8] * 4, [0.9, 0.5, 0.9, 0.46])
    choice = chosen(noisy, sibling, price=0.07)
    assert choice.chosen == "expand"
    assert "not shown to be as good" in choice.why
    assert chosen(noisy, sibling, price=0.1).chosen == "trained"
    assert chosen(noisy, sibling, price=1).chosen == "trained"


@pytest.mark.parametrize(("samples", "expected"), [(8, "expand"), (16, "trained")])
def test_a_few_samples_that_agree_do_not_show_that_all_would(samples, expected):
    options = [
        Candidate(name=name, measured={t: measured([0.8] * samples) for t in ("old", "new")})
        for name in ("trained", "expand")
    ]
    before = {"old": measured([0.8] * samples)}
    assert choose("new", options, before, price=0.02).chosen == expected


def test_a_sibling_whose_prompts_routing_cannot_tell_is_not_opened():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)
    sibling = candidate("expand", [0.8] * 4, [0.9] * 4, told_apart=0.5)
    choice = chosen(harmful, sibling)
    assert choice.chosen == "trained"
    assert "cannot tell" in choice.why


def test_the_worst_task_counts_as_much_as_it_is_told_to():
    even = candidate("straight-0.5", [0.8] * 4, [0.6] * 4)  # mean 0.7, worst 0.6
    uneven = candidate("trained", [0.95] * 4, [0.5] * 4)  # mean 0.725, worst 0.5
    assert chosen(even, uneven).chosen == "trained"
    assert chosen(even, uneven, worst=1.0).chosen == "straight-0.5"


def test_tasks_without_samples_count_with_their_estimate():
    cheap = candidate("straight-0.5", [0.8] * 4, [0.5] * 4, estimate=0.01)
    dear = candidate("trained", [0.8] * 4, [0.9] * 4, estimate=0.3)
    assert chosen(cheap, dear).chosen == "trained"
    choice = chosen(cheap, dear, unmeasured=1)  # above the price: harm
    assert choice.chosen == "straight-0.5"
    assert choice.unmeasured == 1


def test_the_scale_of_the_estimate_is_fitted_through_zero():
    # minimises (2 - s)^2 + (5 - 2 s)^2: s = (2 + 10) / 5
    assert quadratic_scale(np.array([2.0, 5.0]), np.array([1.0, 2.0])) == pytest.approx(2.4)
    assert quadratic_scale(np.array([-1.0]), np.array([1.0])) == 0
    assert quadratic_scale(np.array([1.0]), np.array([0.0])) == 0


@pytest.mark.parametrize(
    ("samples", "share", "held"),
    [(39, 0.1, 0), (40, 0.1, 8), (112, 0.1, 12), (1000, 0.1, 64), (112, 0, 0), (48, 0.25, 12)],
)
def test_a_tenth_is_held_back_but_not_of_small_tasks(samples, share, held):
    task = make_task("letters", "Say the letter.", {"horse": "a"}, train=samples)
    lesson, kept = hold_back(task, share, seed=0)
    assert len(kept) == held
    assert sorted(map(id, (*lesson.train, *kept))) == sorted(map(id, task.train))
    assert lesson.test == task.test


def adapted(folder, *, layers):
    """A host, its model with an adapter on some layers, and values that differ from its own."""
    host = load_host(AssistantConfig(model=str(folder), dtype="float32"))
    modules = ["q_proj", "down_proj"]
    model = host.new_adapter(
        LoraConfig(r=4, target_modules=modules, layers_to_transform=layers, init_lora_weights=False)
    )
    model.eval()
    own = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    other = {n: p + torch.randn(p.shape, generator=generator) for n, p in own.items()}
    return host, model, own, other


def one_by_one(host, model, example):
    """Mean loss and the share that greedy decoding gives, re-derived from the model's logits."""
    ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(example.prompt_ids)
    losses = [-float(chances[first + i - 1, t]) for i, t in enumerate(example.answer_ids)]
    given = 0
    for i, token in enumerate(example.answer_ids):
        if int(chances[first + i - 1].argmax()) != token:
            break
        given += 1
    return sum(losses) / len(losses), given / len(example.answer_ids)


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_sharing_lower_layers_changes_no_number(layers, tiny_model, colours):
    host, model, own, other = adapted(tiny_model, layers=layers)
    examples = [host.chat.encode_example(sample) for sample in colours.train[: BATCH + 3]]
    lower = LowerLayers(model)
    assert (lower.count, lower.total) == (min(layers), 2)
    ways = [Way(lambda: own), Way(lambda: other), Way(lambda: own, plain=True)]
    found = measure(host, model, lower, examples=examples, ways=ways)
    assert lower.count == min(layers)  # its check has passed
    for way, measured in zip(ways, found, strict=True):
        with torch.no_grad():
            for name, values in way.state().items():
                model.get_parameter(name).copy_(values)
        alone = host.base.model if way.plain else model
        with model.disable_adapter() if way.plain else torch.no_grad():
            expected = [one_by_one(host, alone, example) for example in examples]
        losses, given = np.array(expected).T
        assert_close(measured.losses, losses, rtol=1e-4, atol=1e-5)
        assert measured.given.tolist() == given.tolist()


def test_lower_layers_run_once_a_batch_whatever_is_measured(tiny_model, colours):
    host, model, own, other = adapted(tiny_model, layers=[1])
    stack = model.get_submodule("base_model.model.model.layers")
    runs = [0, 0]
    for i, layer in enumerate(stack):
        original = layer.self_attn.forward

        def counted(*args, i=i, original=original, **kwargs):
            runs[i] += 1
            return original(*args, **kwargs)

        layer.self_attn.forward = counted
    examples = [host.chat.encode_example(sample) for sample in colours.train[:BATCH]]
    lower = LowerLayers(model)
    ways = [Way(lambda: own), Way(lambda: other), Way(lambda: own)]
    measure(host, model, lower, examples=examples, ways=ways)
    assert runs == [1, 4]  # the first batch runs the upper layers once more, to compare
    measure(host, model, lower, examples=examples, ways=ways)
    assert runs == [2, 7]
    assert lower.passes(3) == 1 + 3
    assert lower.passes(0) == 0  # nothing is run


def test_layers_whose_output_is_not_all_that_counts_are_not_shared(tiny_model, colours, caplog):
    host, model, own, other = adapted(tiny_model, layers=[1])
    _, above = model.get_submodule("base_model.model.model.layers")
    calls = count()
    above.register_forward_hook(lambda _, inputs, output: output + next(calls))
    examples = [host.chat.encode_example(sample) for sample in colours.train[:2]]
    lower = LowerLayers(model)
    measure(host, model, lower, examples=examples, ways=[Way(lambda: own), Way(lambda: other)])
    assert lower.count == 0
    assert "cannot be shared" in caplog.text


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
