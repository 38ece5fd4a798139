"""What each recipe takes as the instruction, and what fitting reports."""

import pytest

from lcia.errors import ConfigError, DataError
from lcia.grouping import InstructionRecipe

PROMPT = "Classify the ticket: urgent or not.\nOne word only.\n\nMy printer is on fire.\nHelp!\n"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("whole", PROMPT.strip()),
        ("first_paragraph", "Classify the ticket: urgent or not.\nOne word only."),
        ("first_line", "Classify the ticket: urgent or not."),
        ("last_line", "Help!"),
        ("before_colon", "Classify the ticket"),
        ({"regex": r"(?m)^One.*$"}, "One word only."),
        ({"regex": r"ticket: (\w+) or"}, "urgent"),
    ],
)
def test_each_recipe_finds_its_part(spec, wanted):
    recipe = InstructionRecipe.parse(spec)
    assert recipe.find(PROMPT) == recipe.extract(PROMPT) == wanted
    assert recipe.fit([PROMPT, PROMPT]).counts == {wanted: 2}


@pytest.mark.parametrize("spec", ["before_colon", {"regex": "absent"}, {"regex": "(absent)?"}])
def test_what_is_not_found_is_counted_and_the_whole_prompt_taken(spec):
    recipe = InstructionRecipe.parse(spec)
    extraction = recipe.fit(["No colon at 12:30 here. "])
    assert recipe.find("No colon at 12:30 here. ") is None
    assert extraction.counts == {"No colon at 12:30 here.": 1}
    assert extraction.whole_prompts == 1
    assert "none found in 1, where the whole prompt was taken" in extraction.describe()


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("first_paragraph", "{field}\n\n{text}\n\n{text}"),
        ("first_line", "{field}\n{text}\n\n{text}"),
        ("last_line", "{text}\n{field}"),
        ("before_colon", "{field}: {text}"),
        ("whole", "{field}"),
    ],
)
def test_field_learns_the_simplest_recipe_that_gives_the_field_back(kind, template):
    field = "Translate into German"
    prompts = [template.format(field=field, text=f"Sentence {n}") for n in range(5)]
    extraction = InstructionRecipe.parse("field").fit(prompts, [field] * 5)
    assert extraction.recipe.kind == kind
    assert extraction.agreement == 1.0
    assert extraction.counts == {field: 5}
    assert extraction.recipe.extract(prompts[0]) == field


def test_field_falls_back_to_the_whole_prompt_and_says_so():
    extraction = InstructionRecipe.parse("field").fit(["some input"], ["a system prompt"])
    assert extraction.recipe.kind == "whole"
    assert extraction.agreement == 0.0
    assert "gives the named field back in 0%" in extraction.describe()


def test_field_names_the_first_prompt_without_one():
    with pytest.raises(DataError, match="2 prompts; the first without one is number 2"):
        InstructionRecipe.parse("field").fit(["a", "b"], ["x", None])
    with pytest.raises(DataError, match="2 prompts; got 0"):
        InstructionRecipe.parse("field").fit(["a", "b"])


def test_no_prompts_is_an_error():
    with pytest.raises(DataError, match="no prompts"):
        InstructionRecipe.parse("whole").fit([])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lastline", "'lastline' is not a recipe. Nearest: last_line"),
        ("regex", "a pattern goes with the recipe 'regex'"),
        ({"regex": "("}, r"the pattern '\(' does not compile"),
        ({"regex": None}, "a pattern goes with"),
        ({"regexp": "x"}, "expected one of"),
        (7, "expected one of"),
    ],
)
def test_a_wrong_spec_is_named(spec, message):
    with pytest.raises(ConfigError, match=message):
        InstructionRecipe.parse(spec)


def test_an_unfitted_field_recipe_cannot_answer():
    with pytest.raises(ConfigError, match="has to be fitted"):
        InstructionRecipe.parse("field").find("a prompt")


@pytest.mark.parametrize("spec", ["last_line", {"regex": "a(b)"}, "infer"])
def test_a_fitted_recipe_survives_json(spec):
    recipe = InstructionRecipe.parse(spec).fit(["Sort it.\nab", "Sort it.\nabab"]).recipe
    assert InstructionRecipe.from_dict(recipe.to_dict()) == recipe
