"""What lcia adds to merging: the average, and what the group remembers."""

import pytest

from lcia.errors import ConfigError
from lcia.registry import METHODS
from lcia.store.samples import read_samples


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.1, 2), (0.125, 2), (1, 16)])
def test_a_share_of_every_task_is_remembered_and_trained_on(built, numbers, share, count):
    kept = numbers.train[:3]
    opened = built("lcia", {"remembered": share}, remembered=kept)
    context = opened.context
    assert len(context.task.train) == 16
    assert opened.method.samples(context) == [*context.task.train, *kept]
    remembered = opened.method.remember(context)
    assert remembered[:3] == list(kept)
    assert len(set(remembered[3:])) == count == len(remembered) - 3
    assert set(remembered[3:]) <= set(context.task.train)


def test_a_group_that_is_opened_starts_without_the_memory_of_others(create, colours, numbers):
    learner = create({"name": "lcia", "remembered": 0.25})
    first, second = learner.run([colours, numbers])
    adapters = learner.store.current.adapters
    for outcome, task in ((first, colours), (second, numbers)):
        kept = read_samples(adapters[outcome.group][1] / "memory.jsonl")
        assert len(kept) == 4
        assert {sample.prompt for sample in kept} <= {sample.prompt for sample in task.train}


def test_more_than_everything_cannot_be_remembered():
    with pytest.raises(
        ConfigError, match=r"method\.remembered is 1\.5; expected a share .* 0 to 1"
    ):
        METHODS.get("lcia")(remembered=1.5)
