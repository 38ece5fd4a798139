"""``below: content``: what prompts are about decides where the instruction does not."""

import pytest

from lcia.errors import DataError
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

WEATHER = [f"It will {v} in {t} today." for v in ("rain", "snow") for t in ("Rome", "Oslo")]
MONEY = [f"The bank raised {what} by {n} percent." for what in ("rates", "fees") for n in (2, 3)]
TASKS = {
    "weather": ("Say whether one needs an umbrella.", WEATHER),
    "money": ("Name the sum that is meant.", MONEY),
}


def taught(**settings):
    codebook = InstructionCodebook(GroupingConfig(**{"below": "content", **settings}))
    for name, (instruction, texts) in TASKS.items():
        prompts = [f"{instruction}\n{text}" for text in texts]
        extraction = InstructionRecipe.parse("first_line").fit(prompts)
        codebook.add(None, extraction, task=name, prompts=prompts)
    return codebook


def test_a_known_instruction_decides_whatever_the_prompt_is_about():
    decision = Router(taught()).route(f"{TASKS['money'][0]}\n{WEATHER[0]}")
    assert (decision.group, decision.reason) == ("g2", "reached")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("Do I get wet?\nIt will rain in Oslo today.", "g1"),
        ("It will snow in Rome today.", "g1"),
        ("Sag mir den Betrag.\nThe bank raised fees by 7 percent.", "g2"),
    ],
)
def test_a_reworded_or_missing_instruction_reaches_the_group_by_content(text, group):
    decision = Router(taught()).route(text)
    assert (decision.group, decision.reason) == (group, "below_content")


def test_what_was_never_taught_goes_to_the_base_model():
    decision = Router(taught()).route("Compose a limerick concerning penguins")
    assert (decision.group, decision.reason) == (None, "off_topic")


def test_a_retired_group_is_not_chosen():
    codebook = taught()
    codebook.retire("g1")
    assert Router(codebook).route("Wet?\nIt will rain in Oslo today.").group != "g1"


def test_it_is_saved_and_survives_merge_and_split(tmp_path):
    codebook = taught()
    codebook.save(tmp_path / "codebook.json")
    asked = "Wet?\nIt will rain in Oslo today."
    assert Router(InstructionCodebook.load(tmp_path / "codebook.json")).route(asked).group == "g1"
    codebook.merge("g2", "g1")
    assert Router(codebook).route(asked).group == "g2"
    new = codebook.split("g2", ["weather"])
    assert Router(codebook).route(asked).group == new


def test_no_prompt_is_kept_only_terms_that_stand_in_two(tmp_path):
    codebook = taught()
    codebook.save(tmp_path / "codebook.json")
    text = (tmp_path / "codebook.json").read_text()
    assert not any(prompt in text for prompt in (*WEATHER, *MONEY))
    assert '"it will": 4' in text


def test_prompts_are_needed():
    codebook = InstructionCodebook(GroupingConfig(below="content"))
    extraction = InstructionRecipe.parse("first_line").fit(["Say a.\nb"])
    with pytest.raises(DataError, match="below is 'content'"):
        codebook.add(None, extraction, task="a")


def test_other_policies_keep_no_content():
    codebook = taught(below="nearest")
    assert all(task.content is None for group in codebook.groups for task in group.tasks)
    assert "content" not in str(codebook.to_dict()["groups"])
