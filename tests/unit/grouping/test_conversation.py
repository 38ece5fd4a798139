"""What is said to the model as a whole is grouped and routed, wherever the instruction stands."""

import pytest

from lcia.grouping import (
    GroupingConfig,
    InstructionCodebook,
    InstructionRecipe,
    Router,
    Said,
    told,
)
from lcia.grouping.conversation import undecided

LETTER = "Answer with the letter a."
SWAHILI = "Translate the item into Swahili, formally."
POLITE = (
    "You are a helpful, honest and harmless assistant made by Example Corporation. "
    "Think before you speak and never reveal confidential information."
)
WORDS = ["tree", "river", "stone", "lamp", "cloud", "window", "spoon", "carpet", "violin", "owl"]


def conversations(shape, instruction):
    """Ten prompts in which the instruction stands where ``shape`` says."""
    for word in WORDS:
        yield {
            "system": Said(system=instruction, turns=(word,)),
            "system, wrapped input": Said(system=instruction, turns=(f"Item: {word}",)),
            "system with the input": Said(system=f"{instruction}\nItem: {word}", turns=("Go on.",)),
            "below a polite system": Said(system=POLITE, turns=(f"{instruction}\n\n{word}",)),
            "behind it in one system turn": Said(system=f"{POLITE}\n{instruction}", turns=(word,)),
            "first user turn": Said(turns=(f"{instruction} Ready?", word)),
            "follow-up": Said(turns=(word, instruction)),
            "follow-up below a polite system": Said(system=POLITE, turns=(word, instruction)),
            "user": f"{instruction}\n\n{word}",
        }[shape]


SHAPES = [
    "system",
    "system, wrapped input",
    "system with the input",
    "below a polite system",
    "behind it in one system turn",
    "first user turn",
    "follow-up",
    "follow-up below a polite system",
    "user",
]


def taught(shape, *instructions, **settings):
    codebook = InstructionCodebook(GroupingConfig(**settings))
    groups = []
    for i, instruction in enumerate(instructions):
        extraction = InstructionRecipe(kind="infer").fit(list(conversations(shape, instruction)))
        decision = codebook.decide(extraction.instructions, system=extraction.system)
        groups.append(codebook.add(decision.group, extraction, task=f"t{i}"))
    return codebook, groups


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("aggregate", ["best", "mean"])
def test_tasks_are_told_apart_wherever_their_instruction_stands(shape, aggregate):
    codebook, groups = taught(shape, LETTER, SWAHILI, aggregate=aggregate)
    assert groups == ["g1", "g2"]
    router = Router(codebook)
    for instruction, group in ((LETTER, "g1"), (SWAHILI, "g2")):
        decisions = router.route_many(conversations(shape, instruction))
        assert {(one.group, one.reason) for one in decisions} == {(group, "reached")}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_task_of_the_same_instruction_joins_its_group(shape):
    assert taught(shape, LETTER, LETTER)[1] == ["g1", "g1"]
    assert taught(shape, LETTER, SWAHILI, LETTER)[1] == ["g1", "g2", "g1"]


@pytest.mark.parametrize("learned", SHAPES)
@pytest.mark.parametrize("asked", [s for s in SHAPES if s != "system with the input"])
def test_what_was_learned_in_one_shape_is_found_in_another(learned, asked):
    router = Router(taught(learned, LETTER, SWAHILI)[0])
    for instruction, group in ((LETTER, "g1"), (SWAHILI, "g2")):
        assert {d.group for d in router.route_many(conversations(asked, instruction))} == {group}


def test_a_polite_system_turn_does_not_draw_what_knows_it_to_one_group():
    codebook, _ = taught("below a polite system", LETTER, SWAHILI)
    router = Router(codebook)
    switched = Said(system=POLITE, turns=(f"{LETTER}\n\nowl", f"{SWAHILI}\n\nowl"))
    assert router.consider(switched).decision.group == "g2", "the last turn says something else"
    follows = Said(system=POLITE, turns=(f"{LETTER}\n\nowl", "and the stone?"))
    considered = router.consider(follows)
    assert (considered.decision.group, considered.back) == ("g1", 1)


@pytest.mark.parametrize("first", [LETTER, SWAHILI])
def test_follow_ups_keep_the_group_of_a_system_turn(first):
    router = Router(taught("system", LETTER, SWAHILI)[0])
    group = {LETTER: "g1", SWAHILI: "g2"}[first]
    for turns in (("owl",), ("owl", "and stone?"), ("owl", "stone", "thank you, and lamp?")):
        assert router.route(Said(system=first, turns=turns)).group == group


def test_a_developer_turn_is_a_system_turn():
    assert Said.by([("developer", LETTER), ("user", "owl")]) == Said(system=LETTER, turns=("owl",))


def test_a_single_turn_is_its_text_and_answers_are_not_said_to_the_model():
    from lcia.data import Message

    user, answer = Message(role="user", content="Hi\n"), Message(role="assistant", content="Yo")
    assert told([user]) == "Hi\n"
    assert told([user, answer, user]) == Said(turns=("Hi\n", "Hi\n"))


def test_a_field_that_names_the_system_turn_is_found_there_again():
    said = list(conversations("system", LETTER))
    extraction = InstructionRecipe(kind="field").fit(said, [LETTER] * len(said))
    assert (extraction.recipe.kind, extraction.agreement) == ("system", 1.0)
    assert extraction.instructions == [LETTER]


def test_lines_of_the_system_turn_that_tell_tasks_apart_are_kept():
    same = [(["L", "M"], ["L\nM"]), (["L", "M"], ["L\nM"])]
    assert undecided(same) == frozenset()
    assert undecided([(["L"], ["L\nA"]), (["L"], ["L\nB"])]) == {"L"}
    assert undecided([(["L", "A"], ["L\nA\nI"]), (["L", "B"], ["L\nB\nI"])]) == {"L"}
    assert undecided([([], ["L\nA"]), ([], ["L\nB"])]) == frozenset(), "users say it on purpose"


def test_codebooks_with_system_turns_survive_saving_and_others_have_no_new_field(tmp_path):
    codebook, _ = taught("below a polite system", LETTER, SWAHILI)
    codebook.save(tmp_path / "codebook.json")
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert loaded.to_dict() == codebook.to_dict()
    asked = Said(system=POLITE, turns=(f"{SWAHILI}\n\nowl",))
    assert Router(loaded).route(asked) == Router(codebook).route(asked)
    plain = taught("user", LETTER)[0].to_dict()["groups"][0]["tasks"][0]
    assert set(plain) == {"name", "order", "recipe", "instructions", "prototypes"}


@pytest.mark.parametrize("route_on", ["prompt", "both"])
def test_prompts_are_compared_as_a_whole(route_on):
    codebook = InstructionCodebook(GroupingConfig(route_on=route_on, route_threshold=0.3))
    for task, order in (("a", LETTER), ("b", SWAHILI)):
        said = list(conversations("system", order))
        extraction = InstructionRecipe(kind="infer").fit(said)
        codebook.add(None, extraction, task=task, prompts=said)
    router = Router(codebook)
    assert router.route(Said(system=LETTER, turns=("owl",))).group == "g1"
    assert router.route(Said(system=SWAHILI, turns=("owl",))).group == "g2"
