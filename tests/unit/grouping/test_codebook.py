"""Decisions against golden ones and by their properties; the file format."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcia.errors import ConfigError, DataError, StoreError
from lcia.grouping import Extraction, GroupingConfig, InstructionCodebook, InstructionRecipe, Router

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
