"""Threshold advice against the golden stream and by its definition."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcia.errors import DataError
from lcia.grouping import (
    GroupingConfig,
    InstructionRecipe,
    plan_groups,
    suggest_threshold,
    task_similarities,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "grouping_coin.json").read_text())
WHOLE = InstructionRecipe(kind="whole")
COIN = {name: WHOLE.fit(texts) for name, texts in GOLDEN["tasks"].items()}
MEAN = GroupingConfig(aggregate="mean")

WORDS = "sort list red blue image word"
text = st.lists(st.sampled_from(WORDS.split()), min_size=1).map(" ".join)


def test_the_matrix_is_the_golden_one():
    wanted = GOLDEN["mean_pair_similarity"]
    expected = np.array([[wanted[a][b] for b in COIN] for a in COIN])
    assert task_similarities(COIN, MEAN) == pytest.approx(expected, abs=1e-12)


def test_the_levels_of_the_golden_stream():
    advice = suggest_threshold(COIN, MEAN)
    assert [level.group_count for level in advice.levels] == [5, 4, 3]
    widest = advice.levels[1]
    assert (widest.low, widest.high) == pytest.approx((0.0919, 0.8074), abs=1e-4)
    assert advice.threshold == (widest.low + widest.high) / 2


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=6))
def test_every_threshold_within_a_level_gives_its_groups(texts):
    tasks = {f"task{n}": WHOLE.fit(part) for n, part in enumerate(texts)}
    levels = suggest_threshold(tasks, MEAN).levels
    assert levels[0].high == 1
    assert levels[-1].low == 0
    for level in levels:
        for threshold in (level.high, (level.low + level.high) / 2):
            planned = plan_groups(tasks, GroupingConfig(aggregate="mean", threshold=threshold))
            assert {task: group for task, (group, _) in planned.items()} == level.groups


def test_unlike_tasks_get_a_threshold_above_their_likeness():
    tasks = {name: WHOLE.fit([name]) for name in ("sort numbers", "translate german", "sort words")}
    advice = suggest_threshold(tasks, GroupingConfig())
    assert advice.levels[0].group_count == 3
    assert advice.levels[0].low < advice.threshold < 1


def test_no_tasks_is_an_error():
    with pytest.raises(DataError, match="no tasks"):
        suggest_threshold({}, GroupingConfig())
