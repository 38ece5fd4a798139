"""Settings: read once, checked before anything is done."""

import pytest

from lcia.config import AssistantConfig, StreamConfig, load_stream_config, parse_config
from lcia.errors import ConfigError


def read(tmp_path, text, overrides=()):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_stream_config(path, overrides)


MINIMAL = "model: m\nstream: builtin:skills\noutput: out\n"


def test_the_smallest_stream_file_has_defaults_for_the_rest(tmp_path):
    config = read(tmp_path, MINIMAL)
    assert config.method == {"name": "lcia"}
    assert config.seeds == (0,)
    assert config.resolve_grouping().threshold > 0


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    text = MINIMAL + "training: {learning_rate: 1e-4}\n"
    assert read(tmp_path, text).training["learning_rate"] == 1e-4
    config = read(tmp_path, text, ["training.learning_rate=3E-5"])
    assert config.training["learning_rate"] == 3e-5


def test_overrides_change_only_what_they_name(tmp_path):
    config = read(tmp_path, MINIMAL + "adapter: {r: 4, lora_alpha: 8}\n", ["adapter.r=2"])
    assert config.adapter == {"r": 2, "lora_alpha": 8}


@pytest.mark.parametrize("word", ["off", "false", "'off'"])
def test_grouping_off_is_one_group_for_all(tmp_path, word):
    config = read(tmp_path, MINIMAL + f"grouping: {word}\n")
    assert config.resolve_grouping().threshold == 0


def test_grouping_is_as_the_method_prefers(tmp_path):
    assert read(tmp_path, MINIMAL + "method: sequential\n").resolve_grouping().threshold == 0
    assert read(tmp_path, MINIMAL + "method: lcia\n").resolve_grouping().threshold > 0


def test_settings_survive_being_stored():
    config = AssistantConfig(model="m", grouping={"threshold": 0.3}, rule="paper", gate={})
    stored = config.model_dump(mode="json")
    assert parse_config(AssistantConfig, stored, where="x") == config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metod: lcia", r"s\.yaml: metod is not a field of lcia\. Nearest: method"),
        ("seeds: [a]", r"seeds\.0 is 'a'"),
        ("tasks: [{name: a, train: a.jsonl}]", "expected either tasks or stream"),
        ("grouping: {threshold: 2}", r"grouping\.threshold is 2"),
        ("method: {name: fixed_ema, bet: 1}", r"method\.bet is not a setting of FixedEMA"),
        ("rule: {name: papr}", "Nearest: paper"),
        ("generation: {batch_size: 0}", r"generation\.batch_size is 0"),
        ("training: {output_dir: x}", r"training\.output_dir is set by lcia"),
        ("- nonsense", "is not YAML"),
    ],
)
def test_problems_are_named_with_their_place(tmp_path, line, expected):
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, MINIMAL + line + "\n")


def test_every_problem_of_a_file_is_listed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, MINIMAL + "sed: 1\ndtpe: x\n")
    assert len(str(caught.value).splitlines()) == 2


def test_every_recipe_loads():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert isinstance(load_stream_config(recipe), StreamConfig)
