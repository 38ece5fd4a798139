"""What was published: mean similarity, fresh groups, its own rule, nothing remembered."""

import pytest
from safetensors.torch import load_file

from lcia.config import AssistantConfig
from lcia.ema import DynamicEMA
from lcia.learner.training import CARRIED
from lcia.registry import METHODS
from lcia.store.samples import REMEMBERED


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
