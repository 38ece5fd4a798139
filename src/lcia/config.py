"""The configuration tree: what a stream file, ``--set`` and the Python API may say."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lcia.data.stream import TaskConfig
from lcia.errors import ConfigError
from lcia.grouping.config import GroupingConfig
from lcia.registry import METHODS, RULES, nearest

TRAINING_DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 2.0e-4,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "save_steps": 20,
}
ADAPTER_DEFAULTS: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": "all-linear",
}


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number: YAML 1.1 wants a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _named(value: Any) -> Any:
    """Read ``name`` as short for ``{name: name}``."""
    return {"name": value} if isinstance(value, str) else value


def _grouping(value: Any) -> Any:
    """Read ``off`` (YAML: false) as one group for all tasks: a threshold that is always reached."""
    if value is False or value == "off":
        return GroupingConfig(threshold=0.0)
    if value is True or value == "on":
        return GroupingConfig()
    if isinstance(value, Mapping):
        known = [field.name for field in dataclasses.fields(GroupingConfig)]
        for key in value:
            if key not in known:
                raise ConfigError(f"grouping.{key} is not a field of lcia. {nearest(key, known)}")
        return GroupingConfig(**value)
    return value


Named = Annotated[dict[str, Any], BeforeValidator(_named)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationConfig(_Frozen):
    """How answers are generated.

    Attributes:
        batch_size: prompts answered at once.
        max_prompt_tokens: longer prompts lose their middle, in training and in answering.
    """

    batch_size: int = Field(default=16, ge=1)
    max_prompt_tokens: int = Field(default=1024, ge=16)


class GateConfig(_Frozen):
    """When a new version is refused.

    Attributes:
        max_drop: largest loss on any earlier task, in points of its score; None admits all.
    """

    max_drop: float | None = Field(default=None, ge=0)


class AssistantConfig(_Frozen):
    """What one assistant is made with; stored in it.

    Attributes:
        model: an embedded name, a hub id or a local path.
        method: a name of ``lcia.registry.METHODS``, or a mapping with its settings.
        rule: the balance rule of methods that average, with its settings.
        grouping: ``on``, ``off``, or fields of ``GroupingConfig``; None: as the method prefers.
        adapter: ``peft.LoraConfig``, over ``ADAPTER_DEFAULTS``.
        training: ``transformers.TrainingArguments``, over ``TRAINING_DEFAULTS``.
        generation: how answers are generated.
        gate: when a new version is refused.
        dtype: of the base model; ``auto`` is bfloat16 where the hardware computes in it.
        seed: of initialisation, shuffling and dropout.
    """

    model: str
    method: Named = Field(default_factory=lambda: {"name": "lcia"})
    rule: Named = Field(default_factory=lambda: {"name": "release"})
    grouping: Annotated[GroupingConfig | None, BeforeValidator(_grouping)] = None
    adapter: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    generation: GenerationConfig = GenerationConfig()
    gate: GateConfig = GateConfig()
    dtype: str = "auto"
    seed: int = 0

    def build_method(self) -> Any:
        """Return the configured method, ready to use.

        Raises:
            ConfigError: unknown method, rule or setting.
        """
        settings = dict(self.method)
        name = settings.pop("name", None)
        return METHODS.get(str(name))(rule=self.rule, **settings)

    def resolve_grouping(self) -> GroupingConfig:
        """Return the grouping in force: as configured, else as the method prefers."""
        if self.grouping is not None:
            return self.grouping
        method = METHODS.get(str(self.method.get("name")))
        return GroupingConfig() if method.grouping else GroupingConfig(threshold=0.0)

    def check(self) -> None:
        """Check all names and settings without loading a model.

        Raises:
            ConfigError: what is unknown or out of range, with the nearest name.
        """
        self.build_method()
        rule = dict(self.rule)
        _construct(RULES.get(str(rule.pop("name", None))), rule, "rule")
        check_adapter(self.adapter)
        check_training(self.training)


class StreamConfig(AssistantConfig):
    """A stream file: tasks, and the assistants that learn them.

    Attributes:
        tasks: the stream's tasks, in order; or
        stream: the name of a stream that ships with lcia, ``builtin:skills``.
        methods: learn the stream once with each; default: ``method`` alone.
        seeds: learn it once with each seed.
        orders: learn it once in each order: names of orders, each a list of task names.
        output: folder of the results, relative to the stream file.
    """

    tasks: tuple[TaskConfig, ...] = ()
    stream: str | None = None
    methods: tuple[Named, ...] = ()
    seeds: tuple[int, ...] = (0,)
    orders: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    output: Path

    def assistant(self, *, method: Mapping[str, Any], seed: int) -> AssistantConfig:
        """Return the configuration of the assistant of one sub-run."""
        own = {name: getattr(self, name) for name in AssistantConfig.model_fields}
        return AssistantConfig(**{**own, "method": dict(method), "seed": seed})


def load_stream_config(path: str | Path, overrides: Sequence[str] = ()) -> StreamConfig:
    """Read a stream file.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value read as YAML; applied over the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type; one line a problem.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML: {reason}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}.")
    config = parse_config(StreamConfig, tree, where=str(path), overrides=overrides)
    if bool(config.tasks) == (config.stream is not None):
        raise ConfigError(f"{path}: expected either tasks or stream.")
    for method in config.methods or (config.method,):
        try:
            config.assistant(method=method, seed=0).check()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return config


def parse_config(
    kind: type[Any], tree: Mapping[str, Any], *, where: str, overrides: Sequence[str] = ()
) -> Any:
    """Build a configuration of class ``kind`` from plain data.

    Raises:
        ConfigError: unknown keys with the nearest name, wrong types; one line a problem.
    """
    merged = dict(tree)
    for override in overrides:
        _apply(merged, override)
    try:
        return kind(**merged)
    except pydantic.ValidationError as error:
        problems = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_adapter(settings: Mapping[str, Any]) -> None:
    """Check settings of ``peft.LoraConfig``.

    Raises:
        ConfigError: an unknown field or a value peft refuses.
    """
    from peft import LoraConfig

    _check_fields(LoraConfig, settings, "adapter")
    _construct(LoraConfig, {**ADAPTER_DEFAULTS, **settings}, "adapter")


def check_training(settings: Mapping[str, Any]) -> None:
    """Check settings of ``transformers.TrainingArguments``.

    Raises:
        ConfigError: an unknown field, one that lcia sets itself, or a value that is refused.
    """
    from transformers import TrainingArguments

    _check_fields(TrainingArguments, settings, "training")
    for key in ("output_dir", "seed", "data_seed", "save_strategy", "remove_unused_columns"):
        if key in settings:
            raise ConfigError(f"training.{key} is set by lcia. Remove it.")
    for key, kind in {"num_train_epochs": float, "learning_rate": float, "max_steps": int}.items():
        value = settings.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise ConfigError(f"training.{key} is {value!r}; expected a number.")
    _construct(TrainingArguments, {**TRAINING_DEFAULTS, **settings}, "training")


def _check_fields(kind: Any, settings: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            close = nearest(key, known).partition("Choices")[0].strip()
            raise ConfigError(f"{where}.{key} is not a field of {kind.__name__}. {close}".strip())


def _construct(kind: Any, settings: Mapping[str, Any], where: str) -> Any:
    try:
        return kind(**settings)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: {reason}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b.0.c=value`` in nested mappings and lists; mappings on the way are made."""
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example --set seed=1.")
    node: Any = tree
    *parents, last = path.split(".")
    try:
        for key in parents:
            child = node[int(key)] if isinstance(node, list) else node.get(key)
            child = copy.copy(child) if isinstance(child, (list, dict)) else {}
            node[int(key) if isinstance(node, list) else key] = child
            node = child
        node[int(last) if isinstance(node, list) else last] = yaml.load(text, _Loader)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"--set {override}: no such entry: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML.") from error


def _explain(kind: type[BaseModel], problem: Any) -> str:
    *parents, last = [str(part) for part in problem["loc"]] or [""]
    where = ".".join([*parents, last])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, parents)
        return f"{where} is not a field of lcia. {nearest(last, known)}"
    if problem["type"] == "missing":
        return f"{where} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{where} is {problem['input']!r}: {message[0].lower()}{message[1:]}."


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the field names of the model that the keys of ``path`` lead to."""
    if path and path[0] == "tasks":
        return list(TaskConfig.model_fields)
    if path and (inner := kind.model_fields.get(path[0])) is not None:
        annotation = inner.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return list(annotation.model_fields)
    return list(kind.model_fields)
