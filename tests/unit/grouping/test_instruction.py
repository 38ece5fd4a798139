"""Instructions: found in prompts, in templates, in conversations."""

import dataclasses
import random
import time

import pytest

from lcia.errors import ConfigError, DataError
from lcia.grouping import (
    GroupingConfig,
    InstructionCodebook,
    InstructionRecipe,
    Router,
    Said,
    told,
)
from lcia.grouping.instruction import undecided

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


_LINE = "apple river stone cloud engine garden letter window forest bridge candle mirror"
NOUNS = _LINE.split()
random.seed(7)
INPUTS = [
    " ".join(random.choice(NOUNS) + str(random.randint(0, 99)) for _ in range(8)) + "."
    for _ in range(60)
]


def infer(prompts):
    return InstructionRecipe(kind="infer").fit(prompts)


def test_a_recurring_line_is_the_instruction_wherever_it_stands():
    line = "Decide whether the note is urgent or not."
    for template in ("{line}\n{text}", "{text}\n{line}", "{line} {text}", "{text} {line} {text}"):
        extraction = infer([template.format(line=line, text=text) for text in INPUTS])
        assert extraction.counts == {line: len(INPUTS)}
        assert extraction.recipe.find(template.format(line=line, text="unseen words.")) == line


def test_several_sentences_are_kept_in_the_prompts_order():
    prompts = [f"You are given a note. Say which room it names.\n{text}" for text in INPUTS]
    (instruction,) = infer(prompts).instructions
    assert instruction == "You are given a note.\nSay which room it names."


def test_diverse_templates_are_all_found():
    lines = [f"{verb} the given note in one short sentence." for verb in ("Sum up", "Explain")]
    lines.append("What is this about?")
    prompts = [f"{lines[n % 3]}\n{text}" for n, text in enumerate(INPUTS)]
    assert infer(prompts).counts == {line: 20 for line in lines}


def test_a_slot_is_left_open():
    prompts = [f"Translate the word {text.split()[0]} into German please." for text in INPUTS]
    extraction = infer(prompts)
    assert list(extraction.counts) == ["translate the word … into german please"]
    unseen = "Translate the word very old ships into German please."
    assert extraction.recipe.find(unseen) == "translate the word … into german please"


def test_typos_and_numbering_are_forgiven():
    line = "Decide whether the note is urgent or not."
    prompts = [f"{n}. {line}\n{text}" for n, text in enumerate(INPUTS, 1)]
    prompts[3] = prompts[3].replace("whether", "wether")
    prompts[5] = prompts[5].replace("Decide", "Decdie").replace("urgent", "urgnet")
    extraction = infer(prompts)
    assert extraction.counts == {line: len(INPUTS)}
    assert (
        extraction.recipe.find(f"(c) decide wehther the note is urgent or not\n{INPUTS[0]}") == line
    )


def test_input_that_repeats_itself_is_not_the_instruction():
    line = "Say how the talk ends."
    prompts = [
        f"{line}\nAgent: how can I help you today?\n{text}" if n % 2 else f"{line}\n{text}"
        for n, text in enumerate(INPUTS)
    ]
    assert infer(prompts).counts == {line: len(INPUTS)}


def test_lists_of_numbers_are_input_however_alike():
    line = "Swap the largest and the smallest number."
    prompts = [f"{line}\n[{n}, {n + 3}, {n * 7}]" for n in range(40)]
    assert infer(prompts).counts == {line: 40}


def test_prompts_without_anything_in_common_are_taken_whole():
    prompts = ["apple on sand", "river flows east", "seven green doors"]
    extraction = infer(prompts)
    assert extraction.whole_prompts == 3
    assert set(extraction.counts) == set(prompts)
    assert extraction.recipe.find("apple on sand") is None


def test_splitting_gives_back_the_input():
    line = "Decide whether the note is urgent or not."
    recipe = infer([f"{line}\n{text}" for text in INPUTS]).recipe
    assert recipe.split(f"Before. {line} After it.") == (line, "Before.  After it.")


@pytest.mark.parametrize("unit", ["word ", "Decide whether it is not urgent. ", "x" * 100, "1. "])
def test_a_100_kb_prompt_takes_bounded_time(unit):
    recipe = infer([f"Decide whether the note is urgent or not.\n{text}" for text in INPUTS]).recipe
    prompt = (unit * 100_000)[:100_000]
    started = time.process_time()
    recipe.find(prompt)
    assert time.process_time() - started < 2


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


LETTER = "Answer with the letter a."
SWAHILI = "Translate the item into Swahili, formally."
POLITE = (
    "You are a helpful, honest and harmless assistant made by Example Corporation. "
    "Think before you speak and never reveal confidential information."
)
TURNS = ["tree", "river", "stone", "lamp", "cloud", "window", "spoon", "carpet", "violin", "owl"]


def conversations(shape, instruction):
    """Ten prompts in which the instruction stands where ``shape`` says."""
    for word in TURNS:
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


def taught_to_talk(shape, *instructions, **settings):
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
    codebook, groups = taught_to_talk(shape, LETTER, SWAHILI, aggregate=aggregate)
    assert groups == ["g1", "g2"]
    router = Router(codebook)
    for instruction, group in ((LETTER, "g1"), (SWAHILI, "g2")):
        decisions = router.route_many(conversations(shape, instruction))
        assert {(one.group, one.reason) for one in decisions} == {(group, "reached")}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_task_of_the_same_instruction_joins_its_group(shape):
    assert taught_to_talk(shape, LETTER, LETTER)[1] == ["g1", "g1"]
    assert taught_to_talk(shape, LETTER, SWAHILI, LETTER)[1] == ["g1", "g2", "g1"]


@pytest.mark.parametrize("learned", SHAPES)
@pytest.mark.parametrize("asked", [s for s in SHAPES if s != "system with the input"])
def test_what_was_learned_in_one_shape_is_found_in_another(learned, asked):
    router = Router(taught_to_talk(learned, LETTER, SWAHILI)[0])
    for instruction, group in ((LETTER, "g1"), (SWAHILI, "g2")):
        assert {d.group for d in router.route_many(conversations(asked, instruction))} == {group}


def test_a_polite_system_turn_does_not_draw_what_knows_it_to_one_group():
    codebook, _ = taught_to_talk("below a polite system", LETTER, SWAHILI)
    router = Router(codebook)
    switched = Said(system=POLITE, turns=(f"{LETTER}\n\nowl", f"{SWAHILI}\n\nowl"))
    assert router.consider(switched).decision.group == "g2", "the last turn says something else"
    follows = Said(system=POLITE, turns=(f"{LETTER}\n\nowl", "and the stone?"))
    considered = router.consider(follows)
    assert (considered.decision.group, considered.back) == ("g1", 1)


@pytest.mark.parametrize("first", [LETTER, SWAHILI])
def test_follow_ups_keep_the_group_of_a_system_turn(first):
    router = Router(taught_to_talk("system", LETTER, SWAHILI)[0])
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
    codebook, _ = taught_to_talk("below a polite system", LETTER, SWAHILI)
    codebook.save(tmp_path / "codebook.json")
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert loaded.to_dict() == codebook.to_dict()
    asked = Said(system=POLITE, turns=(f"{SWAHILI}\n\nowl",))
    assert Router(loaded).route(asked) == Router(codebook).route(asked)
    plain = taught_to_talk("user", LETTER)[0].to_dict()["groups"][0]["tasks"][0]
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
