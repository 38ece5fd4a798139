"""Routing on prompts: tasks that share their instruction and differ in subject."""

import dataclasses

import pytest

from lcia.errors import DataError
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

SHARED = "Answer with a single word or phrase."
SUBJECTS = {
    "cooking": "how long must the {} simmer in the sauce with butter and salt".format,
    "football": "which striker scored the {} goal for the team in the league match".format,
}
WORDS = ["first", "second", "third", "broth", "onion", "late", "early", "winning"]


def taught(route_on: str, **settings: object) -> InstructionCodebook:
    codebook = InstructionCodebook(GroupingConfig(route_on=route_on, **settings))
    for task, subject in SUBJECTS.items():
        prompts = [f"{subject(word)}\n{SHARED}" for word in WORDS]
        extraction = InstructionRecipe(kind="last_line").fit(prompts)
        codebook.add(None, extraction, task=task, prompts=prompts)
    return codebook


def ask(task: str) -> str:
    return f"{SUBJECTS[task]('potato')}\n{SHARED}"


def test_the_instruction_alone_cannot_tell_them_apart():
    router = Router(taught("instruction"))
    assert {router.route(ask(task)).group for task in SUBJECTS} == {"g1"}
    assert router.route(ask("football")).margin == 0


@pytest.mark.parametrize("route_on", ["prompt", "both"])
def test_prompts_tell_them_apart(route_on):
    router = Router(taught(route_on, route_threshold=0.3))
    decisions = [router.route(ask(task)) for task in SUBJECTS]
    assert [decision.group for decision in decisions] == ["g1", "g2"]
    assert all(decision.reason == "reached" for decision in decisions)
    assert all(decision.margin > 0.1 for decision in decisions)


def test_both_is_the_mean_of_instruction_and_input():
    codebook = taught("both")
    decision = Router(codebook).route(ask("football"))
    scores = codebook.prompt_scores(SUBJECTS["football"]("potato"))
    assert decision.similarity == (1 + scores[1]) / 2


@pytest.mark.parametrize("route_on", ["prompt", "both"])
def test_prototypes_survive_saving_exactly(route_on, tmp_path):
    codebook = taught(route_on)
    codebook.save(tmp_path / "codebook.json")
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert loaded.to_dict() == codebook.to_dict()
    assert Router(loaded).route(ask("football")) == Router(codebook).route(ask("football"))


def test_a_centroid_is_the_normalised_mean_of_unit_counts():
    similarity = taught("prompt").backend
    (centroid,) = similarity.prototypes(["red red blue", "blue"])
    red, blue = 2 / 5**0.5, 1 / 5**0.5 + 1
    length = (red**2 + blue**2) ** 0.5
    assert centroid == pytest.approx({"red": red / length, "blue": blue / length})
    index = similarity.prompt_index()
    index.add([centroid])
    assert index.similarity_to("red zzz")[0] == pytest.approx(red / length / 2**0.5)


def test_prompts_are_asked_for_when_they_are_needed():
    codebook = taught("both")
    extraction = InstructionRecipe(kind="whole").fit(["a text"])
    before = codebook.to_dict()
    with pytest.raises(DataError, match="route_on is 'both', which compares prompts"):
        codebook.add(None, extraction, task="more")
    assert codebook.to_dict() == before


def test_no_prototypes_are_kept_when_instructions_alone_are_compared():
    tasks = [task for group in taught("instruction").groups for task in group.tasks]
    assert [task.prototypes for task in tasks] == [(), ()]
    assert dataclasses.asdict(tasks[0])["prototypes"] == ()
