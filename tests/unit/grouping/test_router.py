"""Routing: policies, recipes, snapshots, hostile prompts."""

import time

import pytest

from lcia.errors import ConfigError
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

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


@pytest.mark.parametrize("text", ["", " \n\t", "the of and", "\x00\x1b[31m\ud800", "日本語" * 50])
def test_any_text_is_answered(codebook, text):
    decision = Router(codebook).route(text)
    assert decision.group in ("g1", "g2", "g3")
    assert 0 <= decision.similarity < 0.8


def test_a_100_kb_prompt_takes_bounded_time(codebook):
    router = Router(codebook)
    text = prompt("tickets", "word " * 20_000)
    started = time.perf_counter()
    assert router.route(text).group == "g1"
    assert time.perf_counter() - started < 1


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
