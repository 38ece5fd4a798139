"""The settings of one assistant."""

import dataclasses
import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from lcia.config.sharding import check_sharding, without_sharding
from lcia.config.training import CANNOT_BE_MADE, check_fields, check_parts, one_line
from lcia.errors import ConfigError
from lcia.grouping.config import GroupingConfig
from lcia.registry import METHODS, RULES, nearest

logger = logging.getLogger(__name__)

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

BEFORE: Mapping[str, Mapping[str, Any]] = {
    "lcia": {"validation": 0.0, "price": 0.02, "worst": 0.0, "opening": 0.0}
}
"""Settings of methods that came later, each with what an assistant means by it that was made
without: it goes on as it was."""


MANY = 20
"""Fields; a message does not list more."""

RENAMED: Mapping[str, Mapping[str, str]] = {"lcia": {"memory": "remembered"}}
"""Settings of methods under earlier names, and today's. Fingerprints hash the earlier ones."""


def _named(value: Any) -> Any:
    """Read ``name`` as short for ``{name: name}``."""
    return {"name": value} if isinstance(value, str) else value


def _method(value: Any, *, told: bool = True) -> Any:
    """Read ``name`` as short for ``{name: name}``, and settings under earlier names."""
    value = _named(value)
    if not isinstance(value, Mapping):
        return value
    for old, new in RENAMED.get(str(value.get("name")), {}).items():
        if old not in value:
            continue
        if new in value:
            raise ConfigError(f"method.{old} is now called {new}, and both are set. Remove {old}.")
        if told:
            logger.warning("method.%s is now called method.%s; write %s.", old, new, new)
        value = {new if key == old else key: own for key, own in value.items()}
    return value


def _rule(value: Any, *, told: bool = True) -> Any:
    """Read ``name`` as short for ``{name: name}``, and a rule under its earlier name."""
    value = _named(value)
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    name = str(value["name"])
    return {**value, "name": RULES.today(name) if told else RULES.renamed.get(name, name)}


def _one_of_rules(value: Any) -> Any:
    """Read an entry of ``rules``; under an earlier name its runs keep the label they had."""
    read = _rule(value)
    written = _named(value)
    return read if read == written else {"label": str(written["name"]), **read}


def todays_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings under today's names, silently: nobody can edit a store."""
    parts = {"method": _method, "rule": _rule}
    return {key: parts[key](v, told=False) if key in parts else v for key, v in stored.items()}


def _or_default(read: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    """Return what reads settings; those that name nothing are of what is called ``name``."""
    return lambda value: read({"name": name, **value} if isinstance(value, Mapping) else value)


def _moded(value: Any) -> Any:
    """Read ``mode`` as short for ``{mode: mode}``."""
    return {"mode": value} if isinstance(value, str) else value


def _grouping(value: Any) -> Any:
    """Read ``off`` (YAML: false), ``on`` (true) and ``per_task`` as short for ``groups``."""
    if value in (False, "off"):
        return GroupingConfig(groups="one")
    if value in (True, "on"):
        return GroupingConfig(groups="similar")
    if value == "per_task":
        return GroupingConfig(groups="per_task")
    if isinstance(value, Mapping):
        known = [field.name for field in dataclasses.fields(GroupingConfig)]
        for key in value:
            if key not in known:
                raise ConfigError(f"grouping.{key} is not a field of lcia. {nearest(key, known)}")
        return GroupingConfig(**value)
    return value


Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""Each task adds to it, and what draws takes up to 2**32 - 1."""

NamedMethod = Annotated[dict[str, Any], BeforeValidator(_method)]
AssistantMethod = Annotated[dict[str, Any], BeforeValidator(_or_default(_method, "lcia"))]
AssistantRule = Annotated[dict[str, Any], BeforeValidator(_or_default(_rule, "horizon"))]
OneOfRules = Annotated[dict[str, Any], BeforeValidator(_one_of_rules)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationConfig(_Frozen):
    """How answers are generated.

    Attributes:
        batch_size: prompts answered at once.
        max_prompt_tokens: longer prompts lose their middle, in training and in answering.
        chat_template_kwargs: what the model's chat template is rendered with, such as
            ``enable_thinking: false``.
        date: the day chat templates are told it is, ``2024-07-26`` unless it is set: answers must
            not depend on the day.
        fold_system: whether the system turn becomes the beginning of the first user turn, for
            chat templates without a system turn.
        chat_template: ``chatml``, for a base model that has no chat template.
    """

    batch_size: int = Field(default=16, ge=1)
    max_prompt_tokens: int = Field(default=1024, ge=16)
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    date: datetime.date | None = None
    fold_system: bool = False
    chat_template: Literal["chatml"] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set: a store of an earlier lcia stays the same to the byte."""
        later = {"chat_template_kwargs", "date", "fold_system", "chat_template"}
        return {k: v for k, v in serialise(self).items() if v or k not in later}


class GateConfig(_Frozen):
    """When a new version is refused.

    Attributes:
        max_drop: largest loss on any earlier task, in points of its score; None admits all.
        tests: which candidates are tested against the current version, sample by sample: those of
            ``jobs`` (fine-tuning jobs and the inbox), ``all`` (of ``lcia learn``, too) or ``none``.
        alpha: of each test, the chance of refusing a candidate that is no worse.
        max_rise: how much the loss on neutral answers may rise, in nats per token.
        max_kl: how far the first tokens of untaught answers may move, in nats per token.
    """

    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    tests: Literal["jobs", "all", "none"] = "jobs"
    alpha: float = Field(default=0.05, gt=0, lt=0.5, allow_inf_nan=False)
    max_rise: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_kl: float = Field(default=2.0, ge=0, allow_inf_nan=False)

    @property
    def looks(self) -> bool:
        """Whether anything is checked after ``lcia learn``."""
        return self.tests == "all" or self.max_drop is not None

    def for_jobs(self) -> "GateConfig":
        """Return the settings as they are for a job: tested unless nothing is."""
        return self.model_copy(update={"tests": "all"}) if self.tests == "jobs" else self

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is as it was before it could be set: stores stay the same to the byte."""
        fields = type(self).model_fields
        dumped = serialise(self).items()
        return {k: v for k, v in dumped if k == "max_drop" or v != fields[k].default}


class EvaluationConfig(_Frozen):
    """How much of the held-out samples a version answers.

    Attributes:
        samples: of all earlier tasks together, at most, spread over tasks and other ones each time;
            the new task's are always answered. None: all of them.
    """

    samples: int | None = Field(default=None, ge=1)


class ProjectorConfig(_Frozen):
    """How the projector of a vision-language model is trained.

    Attributes:
        mode: ``frozen``; ``per_group``: it belongs to a group, like its adapter; or ``shared``:
            every task trains the same one, which then answers for all groups.
        learning_rate: its own, a tenth of the adapter's in the paper.
    """

    mode: Literal["frozen", "per_group", "shared"] = "per_group"
    learning_rate: float = Field(default=2.0e-5, ge=0, allow_inf_nan=False)


class AssistantConfig(_Frozen):
    """What one assistant is made with; stored in it.

    Attributes:
        model: an embedded name, a hub id or a local path.
        method: a name of ``lcia.registry.METHODS``, or a mapping with its settings.
        rule: the balance rule of methods that average, with its settings.
        grouping: ``on``, ``off`` or ``per_task`` says whether to group. Fields of
            ``GroupingConfig`` say how; unless ``groups`` is among them, the method decides whether.
            None leaves both to the method.
        adapter: ``peft.LoraConfig``, over ``ADAPTER_DEFAULTS``.
        training: ``transformers.TrainingArguments``, over ``TRAINING_DEFAULTS``.
        projector: of a vision-language model: a mode of ``ProjectorConfig``, or its fields.
        pad_images: whether images are made square before the model's processor crops them, as
            LLaVA-1.5 was trained; boxes divided by the longer side then fit.
        quantize: ``4bit`` or ``8bit`` base weights through bitsandbytes; None: as they are.
        generation: how answers are generated.
        gate: when a new version is refused.
        evaluation: how much of the held-out samples a version answers.
        dtype: of the base model; ``auto`` is bfloat16 where the hardware is faster with it.
        seed: of initialisation, shuffling and dropout.
    """

    model: str
    method: AssistantMethod = Field(default_factory=dict, validate_default=True)
    rule: AssistantRule = Field(default_factory=dict, validate_default=True)
    grouping: Annotated[GroupingConfig | None, BeforeValidator(_grouping)] = None
    adapter: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    projector: Annotated[ProjectorConfig, BeforeValidator(_moded)] = ProjectorConfig()
    pad_images: bool = False
    quantize: Literal["4bit", "8bit"] | None = None
    generation: GenerationConfig = GenerationConfig()
    gate: GateConfig = GateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    dtype: str = "auto"
    seed: Seed = 0

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came later and is not set: stores stay the same to the byte."""
        unset = EvaluationConfig()
        return {
            k: v
            for k, v in serialise(self).items()
            if k != "evaluation" or self.evaluation != unset
        }

    def build_method(self) -> Any:
        """Return the configured method, ready to use.

        Raises:
            ConfigError: unknown method, rule or setting.
        """
        settings = dict(self.method)
        name = settings.pop("name", None)
        return METHODS.get(str(name))(rule=self.rule, **settings)

    def resolve_grouping(self) -> GroupingConfig:
        """Return the grouping in force: as configured, else as the method prefers.

        Raises:
            ConfigError: the method cannot work with the configured groups.
        """
        name = str(self.method.get("name"))
        method = METHODS.get(name)
        possible = method.groupings
        grouping = self.grouping or GroupingConfig()
        groups = grouping.groups or possible[0]
        if groups not in possible:
            raise ConfigError(
                f"grouping.groups is {groups!r}; method {name} works with "
                f"{' or '.join(map(repr, possible))} only. Remove it, or say it for this method "
                f"alone: {{name: {name}, grouping: {{groups: {possible[0]}}}}}."
            )
        return dataclasses.replace(grouping, groups=groups, **method.fixed_grouping)

    def resolved(self) -> "AssistantConfig":
        """Return the same settings with every default of lcia's spelled out.

        What is stored then means the same to a later lcia, whose defaults may differ.

        Raises:
            ConfigError: unknown method, rule or setting.
        """
        rule = self.build_rule()
        fields = [field.name for field in dataclasses.fields(rule) if field.init]
        return self.model_copy(
            update={
                "method": {"name": self.method["name"], **self.build_method().config},
                "rule": {"name": self.rule["name"], **{f: getattr(rule, f) for f in fields}},
                "grouping": self.resolve_grouping(),
                "adapter": {**ADAPTER_DEFAULTS, **self.adapter},
                "training": {**TRAINING_DEFAULTS, **self.training},
            }
        )

    def build_rule(self) -> Any:
        """Return the configured balance rule.

        Raises:
            ConfigError: unknown rule or setting.
        """
        settings = dict(self.rule)
        kind = RULES.get(str(settings.pop("name", None)))
        _check_fields(kind, settings, "rule")
        return _construct(kind, settings, "rule")

    def check(self) -> None:
        """Check all names and settings without loading a model.

        Raises:
            ConfigError: what is unknown or out of range, with the nearest name.
        """
        self.build_method()
        self.resolve_grouping()
        self.build_rule()
        check_adapter(self.adapter)
        check_sharding(self.training, quantize=self.quantize, dtype=self.dtype)
        check_training(self.training)


def check_adapter(settings: Mapping[str, Any]) -> None:
    """Check settings of ``peft.LoraConfig``.

    Raises:
        ConfigError: an unknown field, more than plain LoRA, or a value peft refuses.
    """
    from peft import LoraConfig

    from lcia.models.lora import check_settings

    _check_fields(LoraConfig, settings, "adapter")
    settings = {**ADAPTER_DEFAULTS, **settings}
    check_settings(settings)
    _construct(LoraConfig, settings, "adapter")


def check_training(settings: Mapping[str, Any]) -> None:
    """Check settings of ``transformers.TrainingArguments``.

    Raises:
        ConfigError: an unknown field, one that lcia sets itself or that is not known to work, or
            a value that is refused.
    """
    import torch
    from transformers import TrainingArguments

    _check_fields(TrainingArguments, settings, "training")
    check_fields(settings)
    use_cpu = not torch.accelerator.is_available()
    settings = without_sharding(settings)
    merged = {"report_to": "none", "use_cpu": use_cpu, **TRAINING_DEFAULTS, **settings}
    check_parts(_construct(TrainingArguments, merged, "training"))


def _check_fields(kind: Any, settings: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for key in settings:
        if key not in known:
            close = nearest(key, known)
            if len(known) > MANY:
                close = close.partition("Choices")[0].strip()
            raise ConfigError(f"{where}.{key} is not a field of {kind.__name__}. {close}".strip())


def _construct(kind: Any, settings: Mapping[str, Any], where: str) -> Any:
    try:
        return kind(**settings)
    except ConfigError:
        raise
    except CANNOT_BE_MADE as error:
        raise ConfigError(f"{where}: {one_line(error)}") from error
