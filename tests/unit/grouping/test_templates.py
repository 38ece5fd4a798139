"""Inferring instructions: recurring sentences, typos, numbering, slots, many templates."""

import random
import time

import pytest

from lcia.grouping import InstructionRecipe

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
    started = time.perf_counter()
    recipe.find(prompt)
    assert time.perf_counter() - started < 2
