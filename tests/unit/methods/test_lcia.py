"""What lcia adds to merging, and the methods as they were published."""

import pytest
from safetensors.torch import load_file

from lcia.config import AssistantConfig
from lcia.ema import DynamicEMA
from lcia.errors import ConfigError
from lcia.learner.training import CARRIED
from lcia.registry import METHODS
from lcia.store.samples import REMEMBERED, read_samples


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


@pytest.mark.parametrize(
    ("name", "rule", "below"),
    [("lcia_paper", "Paper", "nearest"), ("lcia_release", "Release", "latest")],
)
def test_a_reused_group_ends_as_its_average_and_keeps_nothing_else(
    name, rule, below, create, colours, shades, numbers, monkeypatch
):
    made = []
    start = DynamicEMA.__init__

    def seen(self, *args, **options):
        start(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(DynamicEMA, "__init__", seen)
    learner = create(name, rule="horizon")
    learner.run([colours, shades, numbers])
    assert [type(ema.rule).__name__ for ema in made] == [rule]  # only the group that was reused
    weights = load_file(learner.store.current.adapters["g1"][1] / "adapter_model.safetensors")
    shadow = {n.replace(".default", ""): v for n, v in made[0].shadow.items()}
    assert all(values.equal(shadow[n]) for n, values in weights.items())
    for _, folder in learner.store.current.adapters.values():
        assert not (folder / CARRIED).exists()
        assert not (folder / REMEMBERED).exists()
    grouping = learner.config.resolve_grouping()
    assert (grouping.aggregate, grouping.start, grouping.below) == ("mean", "fresh", below)


@pytest.mark.parametrize("name", ["lcia_paper", "lcia_release"])
def test_what_is_the_method_s_own_stays_and_the_rest_is_configured(name):
    grouping = {
        "aggregate": "best",
        "start": "latest",
        "threshold": 0.3,
        "similarity": "tfidf_unicode",
    }
    config = AssistantConfig(model="m", method=name, grouping=grouping).resolved()
    assert (config.grouping.aggregate, config.grouping.start) == ("mean", "fresh")
    assert (config.grouping.threshold, config.grouping.similarity) == (0.3, "tfidf_unicode")
    assert config.method == {"name": name}
    assert METHODS.get(name).settings == {}
