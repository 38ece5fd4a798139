"""Merging, splitting, renaming and retiring groups; explanations."""

import pytest

from lcia.errors import ConfigError
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

TEXTS = {
    "tickets": "Classify the support ticket",
    "german": "Translate this sentence into German",
    "mail": "Classify the support email",
}


@pytest.fixture
def codebook() -> InstructionCodebook:
    codebook = InstructionCodebook(GroupingConfig(threshold=0.9))
    for task, text in TEXTS.items():
        codebook.add(None, InstructionRecipe(kind="whole").fit([text]), task=task)
    return codebook


def test_a_merged_group_answers_for_both(codebook):
    codebook.merge("g1", "g3")
    assert [group.id for group in codebook.groups] == ["g1", "g2"]
    router = Router(codebook)
    assert [router.route(text).group for text in TEXTS.values()] == ["g1", "g2", "g1"]


def test_a_merge_keeps_what_a_task_left_in_both(codebook):
    codebook.add("g1", InstructionRecipe(kind="whole").fit([TEXTS["mail"]]), task="mail")
    codebook.merge("g1", "g3")
    tasks = {task.name: task for task in codebook.group("g1").tasks}
    assert tasks["mail"].instructions == {TEXTS["mail"]: 2}


def test_splitting_undoes_a_merge_under_a_new_id(codebook):
    codebook.merge("g1", "g3")
    assert codebook.split("g1", ["mail"]) == "g4"
    router = Router(codebook)
    assert [router.route(text).group for text in TEXTS.values()] == ["g1", "g2", "g4"]


def test_a_retired_group_is_kept_but_neither_reused_nor_routed_to(codebook):
    codebook.retire("g1")
    decision = codebook.decide([TEXTS["tickets"]])
    assert (decision.group, decision.nearest) == (None, "g3")
    assert "g1" not in decision.similarities
    assert Router(codebook).route(TEXTS["tickets"]).group == "g3"
    codebook.retire("g1", retired=False)
    assert Router(codebook).route(TEXTS["tickets"]).group == "g1"


def test_retiring_all_leaves_the_base_model(codebook):
    for group in ("g1", "g2", "g3"):
        codebook.retire(group)
    assert Router(codebook, "latest").route(TEXTS["mail"]).group is None
    assert codebook.decide([TEXTS["mail"]]).reason == "first_group"


def test_ids_are_not_used_again_and_changes_survive_saving(codebook, tmp_path):
    codebook.merge("g1", "g3")
    codebook.rename("g2", "languages")
    codebook.retire("g2")
    codebook.save(tmp_path / "codebook.json")
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert loaded.to_dict() == codebook.to_dict()
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
def test_an_impossible_change_is_named_and_changes_nothing(codebook, change, message):
    before = codebook.to_dict()
    with pytest.raises(ConfigError, match=message):
        change(codebook)
    assert codebook.to_dict() == before


def test_an_explanation_adds_up_to_the_similarity(codebook):
    explanation = Router(codebook).explain("Please classify the urgent support ticket ticket")
    assert explanation.decision == Router(codebook).route(explanation.decision.instruction)
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
