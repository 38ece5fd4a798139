"""A stream file: tasks, and the assistants that learn them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from lcia.config.assistant import AssistantConfig, NamedMethod, OneOfRules, Seed
from lcia.config.parsing import load_yaml, parse_config
from lcia.data.sample import NAME
from lcia.data.source import TaskSource
from lcia.errors import ConfigError
from lcia.registry import METHODS

OVERRIDES = ("rule", "grouping", "training", "adapter")
"""What an entry of ``methods`` may set for itself, besides the method's own settings."""


def _source(value: Any) -> Any:
    """Read a list as tasks, a text as the name of a built-in stream."""
    if isinstance(value, (list, tuple)):
        return {"tasks": value}
    return {"stream": value} if isinstance(value, str) else value


class StreamConfig(AssistantConfig, TaskSource):
    """A stream file: tasks, as in ``TaskSource``, and the assistants that learn them.

    Attributes:
        held_out: tasks that are never trained, to see what learning does to other abilities: a
            list like ``tasks``, the name of a built-in stream, or ``superni`` as for the stream.
        methods: learn the stream once with each; by default with ``method`` alone. An entry may
            have a ``label`` and its own ``rule``, ``grouping``, ``training`` and ``adapter``; the
            last three add to the stream's.
        rules: learn it once with each rule. Applies to methods that average and name no rule
            themselves. A mapping may have a ``label``.
        groupings: learn it once with each: ``off``, ``on``, ``per_task``, or fields that add to
            the stream's ``grouping``, with a ``label``. Applies to methods that leave the choice
            open and name no grouping themselves.
        seeds: learn it once with each seed.
        orders: learn it once in each order: name of the order to its list of task names. Methods
            that learn all tasks at once, such as ``multitask``, use the first order only.
        output: folder of the results, relative to the stream file.
    """

    held_out: Annotated[TaskSource | None, BeforeValidator(_source)] = None
    methods: tuple[NamedMethod, ...] = ()
    rules: tuple[OneOfRules, ...] = ()
    groupings: tuple[bool | str | dict[str, Any], ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    orders: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    output: Path

    @model_validator(mode="before")
    @classmethod
    def _seeds(cls, tree: Any) -> Any:
        """Read ``seed`` as short for ``seeds`` with one entry."""
        if isinstance(tree, Mapping) and "seed" in tree:
            if "seeds" in tree:
                raise ConfigError("seed and seeds are both set; expected one of them.")
            rest = {key: value for key, value in tree.items() if key != "seed"}
            return {**rest, "seeds": [tree["seed"]]}
        return tree

    def variants(self) -> dict[str, AssistantConfig]:
        """Return the assistants that learn the stream, by label: methods x rules x groupings.

        Their seed is the first of ``seeds``.

        Raises:
            ConfigError: a label twice or none that can name a folder, rules that no method uses,
                an unknown setting.
        """
        found: dict[str, AssistantConfig] = {}
        for entry in self.methods or (self.method,):
            for label, config in _variants(self, entry):
                if label in found:
                    raise ConfigError(
                        f"methods: the label '{label}' stands twice. Tell them apart, for example "
                        f"{{name: {config.method['name']}, label: {label}-2}}."
                    )
                found[label] = config
        crossed = [_crossed(entry) for entry in self.methods or (self.method,)]
        for key in ("rule", "grouping"):
            if getattr(self, f"{key}s") and not any(key in keys for keys in crossed):
                raise ConfigError(f"{key}s: no method of this stream uses them. Remove them.")
        return found


def load_stream_config(path: str | Path, overrides: Sequence[str] = ()) -> StreamConfig:
    """Read a stream file and check every assistant it asks for, without loading a model.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value read as YAML; applied over the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type; one line a problem.
    """
    tree = load_yaml(path)
    config: StreamConfig = parse_config(StreamConfig, tree, where=str(path), overrides=overrides)
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"{path}: seeds: {list(config.seeds)} has a seed twice.")
    where = str(path)
    try:
        for label, assistant in config.variants().items():
            where = f"{path}: {label}" if config.methods else str(path)
            assistant.check()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def _variants(
    stream: StreamConfig, entry: Mapping[str, Any]
) -> Iterator[tuple[str, AssistantConfig]]:
    """Yield label and configuration of every assistant that one entry of ``methods`` asks for."""
    crossed = _crossed(entry)
    rules = stream.rules if stream.rules and "rule" in crossed else (None,)
    groupings = stream.groupings if stream.groupings and "grouping" in crossed else (None,)
    for rule in rules:
        for grouping in groupings:
            own = dict(entry)
            parts = [str(own.pop("label", own["name"]))]
            if rule is not None:
                own["rule"] = {key: value for key, value in rule.items() if key != "label"}
                parts.append(str(rule.get("label", rule.get("name"))))
            if grouping is not None:
                part, own["grouping"] = _labelled(grouping)
                parts.append(part)
            label = "-".join(parts)
            if not NAME.fullmatch(label):
                raise ConfigError(
                    f"label '{label}': expected letters, digits, '.', '_' or '-', not starting "
                    "with '.'."
                )
            yield label, _assistant(stream, own, label=label)


def _crossed(entry: Mapping[str, Any]) -> set[str]:
    """Return which of the lists ``rules`` and ``groupings`` apply to an entry of ``methods``."""
    method = METHODS.get(str(entry.get("name")))
    if "rule" in entry and not method.averages:
        raise ConfigError(
            f"methods: {entry['name']} does not use the rule, which would change nothing. "
            "Remove it."
        )
    applies = {"rule": method.averages, "grouping": len(method.groupings) > 1}
    return {key for key in applies if applies[key] and key not in entry}


def _labelled(grouping: bool | str | Mapping[str, Any]) -> tuple[str, Any]:
    """Return the label of an entry of ``groupings`` and what it configures."""
    if isinstance(grouping, Mapping):
        if "label" not in grouping:
            raise ConfigError(f"groupings: {dict(grouping)} has no label. Add one.")
        return str(grouping["label"]), {k: v for k, v in grouping.items() if k != "label"}
    # YAML reads on and off as truth.
    word = grouping if isinstance(grouping, str) else ("on" if grouping else "off")
    return {"on": "grouped", "off": "ungrouped"}.get(word, word), grouping


def _assistant(stream: StreamConfig, entry: Mapping[str, Any], *, label: str) -> AssistantConfig:
    """Return the stream's settings with those of one entry over them."""
    settings = {name: getattr(stream, name) for name in AssistantConfig.model_fields}
    settings["seed"] = stream.seeds[0]
    settings["method"] = {key: value for key, value in entry.items() if key not in OVERRIDES}
    for key in OVERRIDES:
        if key in entry:
            own = entry[key]
            if key == "grouping" and isinstance(own, Mapping):
                own = {"groups": "similar", **own}  # fields of its own: it is meant to group
            settings[key] = _over(settings[key], own, whole=key == "rule")
    config: AssistantConfig = parse_config(AssistantConfig, settings, where=label)
    return config


def _over(general: Any, own: Any, *, whole: bool) -> Any:
    """Return ``own`` with the fields of ``general`` that it does not set, or ``own`` as a whole."""
    if whole or general is None or not isinstance(own, Mapping):
        return own
    is_mapping = isinstance(general, Mapping)
    fields = general if is_mapping else dataclasses.asdict(general)
    return {**fields, **own}
