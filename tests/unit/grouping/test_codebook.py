"""The codebook: groups, routing, changes by hand, advice on thresholds."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcia.errors import ConfigError, DataError, StoreError
from lcia.grouping import (
    Extraction,
    GroupingConfig,
    InstructionCodebook,
    InstructionRecipe,
    Router,
    plan_groups,
    shares_told_apart,
    suggest_threshold,
    task_similarities,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "grouping_coin.json").read_text())
WHOLE = InstructionRecipe(kind="whole")

WORDS = "classify translate ticket dialogue answer question image red blue"
instruction = st.lists(
    st.sampled_from(WORDS.split()),
    min_size=1,
    max_size=5,
).map(" ".join)
instructions = st.lists(instruction, min_size=1, max_size=6, unique=True)


def taught(*groups: list[str], **settings: object) -> InstructionCodebook:
    codebook = InstructionCodebook(GroupingConfig(**settings))
    for number, texts in enumerate(groups):
        codebook.add(None, WHOLE.fit(texts), task=f"task{number}")
    return codebook


@pytest.mark.parametrize("threshold", GOLDEN["decisions"])
def test_the_golden_decisions_are_met(threshold):
    codebook = InstructionCodebook(GroupingConfig(aggregate="mean", threshold=float(threshold)))
    for wanted in GOLDEN["decisions"][threshold]:
        texts = GOLDEN["tasks"][wanted["task"]]
        decision = codebook.decide(texts)
        group = codebook.add(decision.group, WHOLE.fit(texts), task=wanted["task"])
        assert group == f"g{wanted['group']}"
        similarities = list(decision.similarities.values())
        assert similarities == pytest.approx(wanted["similarity_to_each_group"] or [], abs=1e-12)


def test_best_knows_an_instruction_a_diverse_group_holds_and_mean_does_not():
    stored = ["classify the ticket", "translate into German", "write a poem"]
    assert taught(stored, aggregate="best").decide(stored[:1]).similarity == 1.0
    assert taught(stored, aggregate="mean").decide(stored[:1]).similarity == pytest.approx(1 / 3)


def test_all_tasks_share_one_group_or_each_opens_its_own():
    shared = taught(["classify the ticket"], groups="one", threshold=0.9, below="base")
    assert shared.decide(["sing a song"]).group == "g1"
    assert Router(shared).route("sing a song").group == "g1"
    own = taught(["classify the ticket"], groups="per_task")
    same = own.decide(["classify the ticket"])
    assert (same.group, same.similarity, same.reason) == (None, 1.0, "expand")
    assert InstructionCodebook.from_dict(own.to_dict()).config.groups == "per_task"
    with pytest.raises(ConfigError, match=r"grouping\.groups is 'pertask'.*Nearest: per_task"):
        GroupingConfig(groups="pertask")


def test_a_decision_says_what_came_second_and_why():
    codebook = taught(["classify the ticket"], ["classify the email"], threshold=0.9)
    reuse = codebook.decide(["classify the ticket"])
    assert (reuse.group, reuse.runner_up, reuse.reason) == ("g1", "g2", "reuse")
    expand = codebook.decide(["classify the song"])
    assert (expand.group, expand.nearest, expand.reason) == (None, "g1", "expand")
    assert InstructionCodebook().decide(["anything"]).reason == "first_group"


@settings(deadline=None, max_examples=40)
@given(
    first=instructions,
    second=instructions,
    asked=instructions,
    aggregate=st.sampled_from(["best", "mean"]),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_instructions_does_not_matter(first, second, asked, aggregate, random):
    decisions = []
    for _ in range(2):
        codebook = taught(first, second, aggregate=aggregate, threshold=0.5)
        decisions.append(codebook.decide(asked))
        for texts in (first, second, asked):
            random.shuffle(texts)
    assert decisions[0] == decisions[1]


@settings(deadline=None, max_examples=40)
@given(first=instructions, second=instructions, asked=instructions)
def test_a_duplicate_changes_no_decision_of_best(first, second, asked):
    codebook = taught(first, second, threshold=0.5)
    before = codebook.decide(asked)
    codebook.add("g1", WHOLE.fit(first[:1]), task="again")
    assert codebook.decide(asked) == before
    assert codebook.decide([*asked, asked[0]]) == before


@settings(deadline=None, max_examples=40)
@given(groups=st.lists(instructions, max_size=4), asked=instructions)
def test_growing_step_by_step_equals_building_at_once(groups, asked):
    grown = taught(*groups)
    assert grown.copy().similarities(asked) == grown.similarities(asked)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(), min_size=1, max_size=4))
def test_saving_and_loading_is_exact(texts, tmp_path_factory):
    codebook = taught(texts, ["classify the ticket"], threshold=0.3, below="base")
    path = tmp_path_factory.mktemp("codebook") / "codebook.json"
    codebook.save(path)
    loaded = InstructionCodebook.load(path)
    assert loaded.to_dict() == codebook.to_dict()
    assert loaded.decide(texts) == codebook.decide(texts)


def test_decisions_do_not_depend_on_the_hash_seed():
    script = (
        "from lcia.grouping import *\n"
        "whole = InstructionRecipe(kind='whole')\n"
        "book = InstructionCodebook(GroupingConfig(aggregate='mean'))\n"
        "for n in range(20):\n"
        "    book.add(None, whole.fit([f'sort red{n % 7} dot{n % 3}', 'sort']), task=f't{n}')\n"
        "print(book.decide(['sort red1 dot2', 'dot1']), book.to_dict())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1


def test_a_task_learned_again_adds_to_what_it_left():
    codebook = taught(["classify the ticket"])
    codebook.add("g1", WHOLE.fit(["classify the ticket", "sort the ticket"]), task="task0")
    (task,) = codebook.group("g1").tasks
    assert task.instructions == {"classify the ticket": 2, "sort the ticket": 1}
    assert task.order == 2


def test_nothing_to_compare_is_an_error():
    with pytest.raises(DataError, match="no instructions"):
        InstructionCodebook().decide([])


def test_an_unknown_group_is_an_error_with_the_nearest():
    codebook = taught(["a text"])
    extraction = Extraction(recipe=WHOLE, counts={"x": 1}, prompts=1)
    with pytest.raises(ConfigError, match=r"no group 'g2'\. Nearest: g1"):
        codebook.add("g2", extraction, task="t")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "expected JSON that lcia wrote"),
        ("[]", "not a codebook"),
        ("{}", "not a codebook"),
        ('{"schema": 99}', "schema 99; this lcia reads 1"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "codebook.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StoreError, match=message):
        InstructionCodebook.load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": "tfdif"}, "grouping.similarity is 'tfdif'.*Nearest: tfidf"),
        ({"aggregate": "worst"}, "grouping.aggregate is 'worst'"),
        ({"below": "last"}, "grouping.below is 'last'"),
        ({"route_on": "text"}, "grouping.route_on is 'text'"),
        ({"threshold": 1.5}, "grouping.threshold is 1.5; expected a number from 0 to 1"),
        ({"threshold": "0.5"}, "grouping.threshold is '0.5'"),
        ({"threshold": True}, "grouping.threshold is True"),
        ({"threshold": float("nan")}, "grouping.threshold is nan"),
        ({"encoder": 3}, "grouping.encoder is 3"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        GroupingConfig(**settings)


TASKS = {
    "tickets": ("Classify the support ticket by urgency.", "first_line"),
    "german": ("Translate the sentence into German.", "last_line"),
    "poem": ("Write a poem about the given word", "before_colon"),
}


def prompt(task: str, text: str) -> str:
    instruction, kind = TASKS[task]
    return {
        "first_line": f"{instruction}\n{text}",
        "last_line": f"{text}\n{instruction}",
        "before_colon": f"{instruction}: {text}",
    }[kind]


@pytest.fixture
def codebook() -> InstructionCodebook:
    codebook = InstructionCodebook(GroupingConfig(threshold=0.8))
    for task, (instruction, kind) in TASKS.items():
        prompts = [prompt(task, f"some text {n}") for n in range(3)]
        extraction = InstructionRecipe(kind=kind).fit(prompts)
        assert extraction.instructions == [instruction]
        codebook.add(codebook.decide(extraction.instructions).group, extraction, task=task)
    return codebook


@pytest.mark.parametrize(("task", "group"), [("tickets", "g1"), ("german", "g2"), ("poem", "g3")])
def test_a_prompt_goes_to_its_group_by_its_own_recipe(codebook, task, group):
    decision = Router(codebook).route(prompt(task, "something never seen"))
    assert (decision.group, decision.similarity, decision.reason) == (group, 1.0, "reached")
    assert decision.instruction == TASKS[task][0]
    assert decision.margin == 1.0 - decision.runner_up_similarity > 0


@pytest.mark.parametrize(("below", "group"), [("nearest", "g1"), ("latest", "g3"), ("base", None)])
def test_the_policy_answers_below_the_threshold(codebook, below, group):
    decision = Router(codebook, below).route("Classify the ticket for me, would you?\nIt broke")
    assert decision.similarity < 0.8
    assert (decision.group, decision.reason, decision.nearest) == (group, f"below_{below}", "g1")


def test_latest_is_the_group_that_learned_last_not_the_one_opened_last(codebook):
    whole = InstructionRecipe(kind="whole")
    codebook.add("g1", whole.fit(["Rate the ticket"]), task="rating")
    assert Router(codebook, "latest").route("zzz").group == "g1"


def test_a_router_is_a_snapshot(codebook):
    router = Router(codebook)
    before = router.route("Sing a song about rain")
    codebook.add(None, InstructionRecipe(kind="whole").fit(["Sing a song about rain"]), task="s")
    assert router.route("Sing a song about rain") == before
    assert Router(codebook).route("Sing a song about rain").similarity == 1.0


def test_an_empty_codebook_routes_to_the_base_model():
    decision = Router(InstructionCodebook()).route("anything")
    assert (decision.group, decision.reason, decision.similarity) == (None, "no_groups", 0.0)


def test_a_prompt_without_an_instruction_is_compared_whole(codebook):
    recipe = InstructionRecipe.parse({"regex": "TASK (.*)"})
    codebook = InstructionCodebook()
    codebook.add(None, recipe.fit(["TASK sort numbers"]), task="sort")
    decision = Router(codebook).route("sort numbers")
    assert (decision.group, decision.instruction_found) == ("g1", False)


TAUGHT = ("Write this number in digits.", "Say on which continent it lies.\nUse one word.")
STANDS = (
    "{told}\n\n{text}",
    "{text}\n\n{told}",
    "Hello there!\n\n{told}\n\n{text}\n\nThanks.",
    "{text}\n\n{told}\n\n{text}\n\nThanks a lot.",
)


@pytest.mark.parametrize("kind", ["first_paragraph", "field", "last_line", "before_colon"])
@pytest.mark.parametrize("route_on", ["instruction", "both"])
def test_an_instruction_is_found_wherever_it_stands(kind, route_on):
    codebook = InstructionCodebook(GroupingConfig(route_on=route_on, threshold=0.9))
    for name, told in zip("ab", TAUGHT, strict=True):
        prompts = [f"{told}\n\nseven {name}{i}" for i in range(4)]
        recipe = InstructionRecipe(kind="field").fit(prompts, [told] * 4).recipe
        extraction = recipe.apply(prompts)
        if kind != "field":
            extraction = replace(extraction, recipe=InstructionRecipe(kind=kind))
        codebook.add(None, extraction, task=name, prompts=prompts)
    router = Router(codebook)
    for stands in STANDS:
        for group, told in zip(("g1", "g2"), TAUGHT, strict=True):
            decision = router.route(stands.format(told=told, text="nine hundred\nand one"))
            assert (decision.group, decision.instruction) == (group, told), stands
            assert decision.instruction_found


def standing(kind, stands):
    """Return a codebook with a group for each of ``TAUGHT``, whose prompts are of that form."""
    codebook = InstructionCodebook()
    for told in TAUGHT:
        prompts = [stands.format(told=told)]
        codebook.add(None, InstructionRecipe(kind=kind).fit(prompts), task=told, prompts=prompts)
    return codebook


@pytest.mark.parametrize(
    "prompt",
    [
        "Write this number in digits: nine hundred and one",
        "Hi! Write this number in digits. It is nine hundred and one.",
        "nine hundred and one\nPlease help me. Write this number in digits.",
    ],
)
def test_an_instruction_is_found_among_sentences(prompt):
    decision = Router(standing("last_line", "seven\n\n{told}")).route(prompt)
    assert (decision.group, decision.reason) == ("g1", "reached")


def test_a_line_that_is_merely_alike_decides_nothing(monkeypatch):
    codebook = standing("first_paragraph", "{told}\n\nseven")
    prompt = "A poem please\n\nabout the number\nof digits"
    found = Router(codebook).route(prompt)
    monkeypatch.setattr(Router, "_parts", lambda self, text: {})
    assert found == Router(codebook).route(prompt)
    assert found.reason == "below_nearest"


@pytest.mark.parametrize("text", ["", " \n\t", "the of and", "\x00\x1b[31m\ud800", "日本語" * 50])
def test_any_text_is_answered(codebook, text):
    decision = Router(codebook).route(text)
    assert decision.group in ("g1", "g2", "g3")
    assert 0 <= decision.similarity < 0.8


def test_a_100_kb_prompt_takes_bounded_time(codebook):
    router = Router(codebook)
    text = prompt("tickets", "word " * 20_000)
    started = time.process_time()
    assert router.route(text).group == "g1"
    assert time.process_time() - started < 1


def test_a_prompt_of_megabytes_costs_no_more_than_its_beginning_and_end(codebook):
    router = Router(codebook)
    words = " ".join(f"w{i}" for i in range(400_000))
    for task, group in (("tickets", "g1"), ("german", "g2")):
        started = time.process_time()
        decision = router.route(prompt(task, words))
        assert time.process_time() - started < 1
        assert (decision.group, decision.reason) == (group, "reached")
    assert len(router.route(words).instruction) <= (1 << 14) + 1


def test_route_many_is_route_for_each(codebook):
    router = Router(codebook)
    texts = [prompt(task, "x y z") for task in TASKS]
    assert router.route_many(texts) == [router.route(text) for text in texts]


def test_an_unknown_policy_is_named(codebook):
    with pytest.raises(ConfigError, match="'newest' is not a policy"):
        Router(codebook, "newest")


TEXTS = {
    "tickets": "Classify the support ticket",
    "german": "Translate this sentence into German",
    "mail": "Classify the support email",
}


@pytest.fixture
def changed_codebook() -> InstructionCodebook:
    changed_codebook = InstructionCodebook(GroupingConfig(threshold=0.9))
    for task, text in TEXTS.items():
        changed_codebook.add(None, InstructionRecipe(kind="whole").fit([text]), task=task)
    return changed_codebook


def test_a_merged_group_answers_for_both(changed_codebook):
    changed_codebook.merge("g1", "g3")
    assert [group.id for group in changed_codebook.groups] == ["g1", "g2"]
    router = Router(changed_codebook)
    assert [router.route(text).group for text in TEXTS.values()] == ["g1", "g2", "g1"]


def test_a_merge_keeps_what_a_task_left_in_both(changed_codebook):
    changed_codebook.add("g1", InstructionRecipe(kind="whole").fit([TEXTS["mail"]]), task="mail")
    changed_codebook.merge("g1", "g3")
    tasks = {task.name: task for task in changed_codebook.group("g1").tasks}
    assert tasks["mail"].instructions == {TEXTS["mail"]: 2}


def test_splitting_undoes_a_merge_under_a_new_id(changed_codebook):
    changed_codebook.merge("g1", "g3")
    assert changed_codebook.split("g1", ["mail"]) == "g4"
    router = Router(changed_codebook)
    assert [router.route(text).group for text in TEXTS.values()] == ["g1", "g2", "g4"]


def test_a_retired_group_is_kept_but_neither_reused_nor_routed_to(changed_codebook):
    changed_codebook.retire("g1")
    decision = changed_codebook.decide([TEXTS["tickets"]])
    assert (decision.group, decision.nearest) == (None, "g3")
    assert "g1" not in decision.similarities
    assert Router(changed_codebook).route(TEXTS["tickets"]).group == "g3"
    changed_codebook.retire("g1", retired=False)
    assert Router(changed_codebook).route(TEXTS["tickets"]).group == "g1"


def test_retiring_all_leaves_the_base_model(changed_codebook):
    for group in ("g1", "g2", "g3"):
        changed_codebook.retire(group)
    assert Router(changed_codebook, "latest").route(TEXTS["mail"]).group is None
    assert changed_codebook.decide([TEXTS["mail"]]).reason == "first_group"


def test_ids_are_not_used_again_and_changes_survive_saving(changed_codebook, tmp_path):
    changed_codebook.merge("g1", "g3")
    changed_codebook.rename("g2", "languages")
    changed_codebook.retire("g2")
    changed_codebook.save(tmp_path / "codebook.json")
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert loaded.to_dict() == changed_codebook.to_dict()
    assert (loaded.group("g2").name, loaded.group("g2").retired) == ("languages", True)
    extraction = InstructionRecipe(kind="whole").fit(["Write a poem"])
    assert loaded.add(None, extraction, task="poem") == "g4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.merge("g1", "g1"), "cannot be merged with itself"),
        (lambda c: c.merge("g1", "g9"), "There is no group 'g9'"),
        (lambda c: c.split("g1", ["tickets"]), "has to move some of its tasks and keep some"),
        (lambda c: c.split("g1", []), "has to move some"),
        (lambda c: c.split("g1", ["ticket"]), "has no task 'ticket'. Nearest: tickets"),
        (lambda c: c.rename("x", "y"), "There is no group 'x'"),
        (lambda c: c.retire("x"), "There is no group 'x'"),
    ],
)
def test_an_impossible_change_is_named_and_changes_nothing(changed_codebook, change, message):
    before = changed_codebook.to_dict()
    with pytest.raises(ConfigError, match=message):
        change(changed_codebook)
    assert changed_codebook.to_dict() == before


def test_an_explanation_adds_up_to_the_similarity(changed_codebook):
    explanation = Router(changed_codebook).explain(
        "Please classify the urgent support ticket ticket"
    )
    assert explanation.decision == Router(changed_codebook).route(explanation.decision.instruction)
    assert explanation.matched == TEXTS["tickets"]
    assert list(explanation.terms) == ["ticket", "classify", "support"]
    assert sum(explanation.terms.values()) == pytest.approx(explanation.decision.similarity)
    assert list(explanation.similarities) == ["g1", "g3", "g2"]


def test_an_empty_codebook_explains_itself():
    explanation = Router(InstructionCodebook()).explain("anything")
    assert (explanation.matched, dict(explanation.terms), dict(explanation.similarities)) == (
        None,
        {},
        {},
    )


COIN = {name: WHOLE.fit(texts) for name, texts in GOLDEN["tasks"].items()}
MEAN = GroupingConfig(aggregate="mean")

ADVISED = "sort list red blue image word"
text = st.lists(st.sampled_from(ADVISED.split()), min_size=1).map(" ".join)


def test_the_matrix_is_the_golden_one():
    wanted = GOLDEN["mean_pair_similarity"]
    expected = np.array([[wanted[a][b] for b in COIN] for a in COIN])
    assert task_similarities(COIN, MEAN) == pytest.approx(expected, abs=1e-12)


def test_the_levels_of_the_golden_stream():
    advice = suggest_threshold(COIN, MEAN)
    assert [level.group_count for level in advice.levels] == [5, 4, 3]
    widest = advice.levels[1]
    assert (widest.low, widest.high) == pytest.approx((0.0919, 0.8074), abs=1e-4)
    assert advice.threshold == (widest.low + widest.high) / 2


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=6))
def test_every_threshold_within_a_level_gives_its_groups(texts):
    tasks = {f"task{n}": WHOLE.fit(part) for n, part in enumerate(texts)}
    levels = suggest_threshold(tasks, MEAN).levels
    assert levels[0].high == 1
    assert levels[-1].low == 0
    for level in levels:
        for threshold in (level.high, (level.low + level.high) / 2):
            planned = plan_groups(tasks, GroupingConfig(aggregate="mean", threshold=threshold))
            assert {task: group for task, (group, _) in planned.items()} == level.groups


def test_unlike_tasks_get_a_threshold_above_their_likeness():
    tasks = {name: WHOLE.fit([name]) for name in ("sort numbers", "translate german", "sort words")}
    advice = suggest_threshold(tasks, GroupingConfig())
    assert advice.levels[0].group_count == 3
    assert advice.levels[0].low < advice.threshold < 1


def test_no_tasks_is_an_error():
    with pytest.raises(DataError, match="no tasks"):
        suggest_threshold({}, GroupingConfig())


def test_the_plan_says_whether_a_siblings_prompts_would_be_told_apart():
    """Two tasks of one instruction: about other things, then about the same."""
    words = {"animals": ["horse", "sheep"], "tools": ["hammer", "pliers"], "more": ["hammer"]}
    prompts = {
        name: [f"Say the letter.\n\n{of[i % len(of)]} {'abcdefgh'[i % 8]}" for i in range(40)]
        for name, of in words.items()
    }
    recipe = InstructionRecipe.parse("first_line")
    tasks = {name: recipe.fit(of) for name, of in prompts.items()}
    config = GroupingConfig()

    def shares(*names):
        some = {name: tasks[name] for name in names}
        return shares_told_apart(some, prompts, plan_groups(some, config))

    assert shares("animals", "tools") == {"tools": 1.0}
    assert shares("tools", "more")["more"] < 0.8
    assert shares("animals") == {}
