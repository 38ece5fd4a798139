"""``builtin:skills``: six small tasks in four instruction styles, made from packages' data."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from lcia.data.sample import Message, Sample, Task
from lcia.demo import facts

TRAIN = 104
TEST = 40
MAX_NEW_TOKENS = 10

GERMAN = "Translate into German."
SPANISH = "Translate into Spanish."
DIGITS = "Write this number in digits."
ONE_WORD = "Answer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A task before its samples are drawn.

    Attributes:
        name: of the task.
        instruction: the last line of every prompt; equal for tasks of one style.
        facts: makes question to answer; no two questions share a subject.
    """

    name: str
    instruction: str
    facts: Callable[[], dict[str, str]]


# Later tasks pull at earlier ones: Spanish dates at German ones, one-word answers at all the rest.
SKILLS = (
    Skill(name="dates_german", instruction=GERMAN, facts=lambda: facts.dates("de")),
    Skill(name="continents", instruction=ONE_WORD, facts=facts.continents),
    Skill(name="number_words", instruction=DIGITS, facts=facts.number_words),
    Skill(name="dates_spanish", instruction=SPANISH, facts=lambda: facts.dates("es")),
    Skill(name="populations_german", instruction=GERMAN, facts=lambda: facts.populations("de")),
    Skill(name="sentiments", instruction=ONE_WORD, facts=facts.sentiments),
)


def skills() -> tuple[Task, ...]:
    """Return the tasks: 104 train and 40 test samples each, no subject in both.

    Equal on every machine that has the same versions of the packages.

    Raises:
        MissingDependencyError: a package of the extra ``skills`` is not installed.
    """
    return tuple(_task(skill) for skill in SKILLS)


def _task(skill: Skill) -> Task:
    drawn = list(skill.facts().items())
    random.Random(skill.name).shuffle(drawn)
    samples = tuple(
        Sample(
            id=f"{skill.name}-{i}",
            messages=(Message(role="user", content=f"{question}\n\n{skill.instruction}"),),
            answers=(answer,),
            instruction=skill.instruction,
        )
        for i, (question, answer) in enumerate(drawn[: TRAIN + TEST])
    )
    return Task(
        name=skill.name,
        train=samples[:TRAIN],
        test=samples[TRAIN:],
        instruction="last_line",
        max_new_tokens=MAX_NEW_TOKENS,
    )
