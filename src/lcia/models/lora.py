"""Which LoRA lcia supports, stated once: y = W x + s B A x on linear layers, and W stays as it is.

Settings, adapters in memory, stored ones and those of others are all held to it: the average, the
merging, the mixing of adapters in a batch and serving know nothing else.

A mixture of LoRA experts is one LoRA, too: on a module with rank n r, W a matrix of shape (n,
inputs), and x a token's input, the experts' outputs B_i A_i x are weighted by softmax(W x)_i: the
hook scales the n blocks of A x, so peft's own forward, batches of mixed adapters included, does the
rest.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcia.errors import ConfigError, StoreError

SETTINGS = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "init_lora_weights",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
    }
)
"""Fields of ``LoraConfig`` that leave y = W x + s B A x as it is; any other keeps its default."""

RECORDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)
"""Fields that peft writes into a stored adapter, and that say nothing about what it computes."""

INITIAL = (True, False, "gaussian")
"""Ways to start that leave the base model alone and train both factors."""

STORED_INITIAL = (*INITIAL, "eva", "orthogonal")
"""The same for an adapter that was trained elsewhere: how it started no longer matters."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of an adapter to train, fields of ``peft.LoraConfig``.

    Raises:
        ConfigError: a field that makes it more than plain LoRA, or a value out of range.
    """
    from peft import LoraConfig

    for field in dataclasses.fields(LoraConfig):
        value = settings.get(field.name)
        if field.name in RECORDS and value:
            raise ConfigError(f"adapter.{field.name} is set by lcia. Remove it.")
        if field.name not in SETTINGS and not _is_neutral(field, value):
            raise ConfigError(
                f"adapter.{field.name} is {value!r}; lcia trains plain LoRA, y = W x + s B A x, "
                "which it can average, mix and serve. Remove it."
            )
    start = settings.get("init_lora_weights", True)
    if start not in INITIAL:
        raise ConfigError(
            f"adapter.init_lora_weights is {start!r}; expected true, false or 'gaussian': others "
            "change the base model's weights or train one factor only."
        )
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise ConfigError(f"adapter.{key} is {patterns!r}; expected modules and numbers.")
        for name, value in patterns.items():
            least, kind = (1, "r") if key == "rank_pattern" else (None, "lora_alpha")
            _check_number(kind, value, least=least, where=f"{key}.{name}")
    for key in ("target_modules", "exclude_modules"):
        _check_pattern(key, settings.get(key))
    if settings.get("target_modules") in ([], ""):
        raise ConfigError("adapter.target_modules is empty; expected names, or 'all-linear'.")
    if settings.get("fan_in_fan_out"):
        raise ConfigError(
            "adapter.fan_in_fan_out is set by peft, as the layers need it. Remove it."
        )
    if isinstance(targets := settings.get("target_modules"), str):
        for key in ("layers_to_transform", "layers_pattern"):
            if settings.get(key) is not None:
                raise ConfigError(
                    f"adapter.{key} needs a list of names as adapter.target_modules, which is "
                    f"{targets!r}. Add for example target_modules: [q_proj, v_proj]."
                )
    for key, least in {"r": 1, "lora_alpha": None, "lora_dropout": 0}.items():
        _check_number(key, settings.get(key, 1 if least else 0.5), least=least)


def unsupported(config: Any) -> list[str]:
    """Return what makes a ``LoraConfig`` more than plain LoRA, as ``field`` or ``field=value``."""
    found = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in SETTINGS | RECORDS | {"eva_config"}  # peft fills it in for "eva"
        and not _is_neutral(field, getattr(config, field.name))
    ]
    if config.init_lora_weights not in STORED_INITIAL:
        found.append(f"init_lora_weights={config.init_lora_weights}")
    return found


def read_config(folder: Path) -> Any:
    """Return the ``LoraConfig`` of a stored adapter that is plain LoRA.

    Raises:
        StoreError: the folder is damaged, or the adapter is more than plain LoRA.
    """
    from peft import LoraConfig

    path = folder / "adapter_config.json"
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        config = LoraConfig(**{key: stored[key] for key in stored if key in known})
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{folder}: is not an adapter that peft can read: {error}") from error
    if stored.get("peft_type") != "LORA":
        raise StoreError(
            f"{folder}: is a {stored.get('peft_type')} adapter; expected a LoRA adapter."
        )
    # A later peft's fields may change what is computed; this one would read past them.
    if found := unsupported(config) + [key for key in stored if key not in known and stored[key]]:
        raise StoreError(
            f"{folder}: uses {', '.join(found)}; expected plain LoRA, y = W x + s B A x. Train the "
            "adapter without it."
        )
    return config


def add_lora(model: Any, config: Any, *, name: str) -> Any:
    """Put a fresh adapter on a base model, and return the ``PeftModel``.

    Args:
        model: the base model; as it was, if this raises.
        config: ``peft.LoraConfig``; peft spells its targets out.
        name: of the adapter.

    Raises:
        ConfigError: it is more than plain LoRA, or names no linear layers of this model.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if found := unsupported(config):
        raise ConfigError(f"adapter: uses {', '.join(found)}; expected plain LoRA. Remove it.")
    asked = config.target_modules
    try:
        _check_kinds(model, config)
        with quiet_peft():
            peft = get_peft_model(model, config, adapter_name=name)
        _check_names(config, asked, adapted=peft.base_model.targeted_module_names)
    except (ValueError, re.error) as error:
        for path, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(path, module.get_base_layer())
        reason = str(error).partition("Please check")[0].partition("Currently")[0].strip()
        raise ConfigError(f"adapter: {' '.join(reason.split())}") from error
    return peft


def load_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """Put a stored adapter on a base model, and return the ``PeftModel``.

    Args:
        model: the base model.
        folder: a peft adapter directory.
        options: of ``PeftModel.from_pretrained``.
    """
    from peft import PeftModel

    with quiet_peft():
        return PeftModel.from_pretrained(model, folder, **options)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep from users what is between peft and transformers: an attribute by its older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def _check_kinds(model: Any, config: Any) -> None:
    """Refuse what peft adapts otherwise than by y = W x + s B A x."""
    import torch
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules in (None, "all-linear"):
        return
    other = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention)
    for name, module in model.named_modules():
        if isinstance(module, other) and check_target_module_exists(config, name):
            raise ValueError(
                f"target_modules: {name} is no linear layer but {type(module).__name__}."
            )


def _check_names(config: Any, asked: Any, *, adapted: Sequence[str]) -> None:
    """Refuse a name, layer or pattern that meets no adapted module: it was meant to."""
    ends = [] if asked is None or isinstance(asked, str) else sorted(asked)
    layers = config.layers_to_transform
    layers = [layers] if isinstance(layers, int) else layers or []
    wanted = {
        "target_modules": {end: rf"(.*\.)?{re.escape(end)}" for end in ends},
        "layers_to_transform": {layer: rf".*\.{layer}\..*" for layer in layers},
        "rank_pattern": {key: rf"(.*\.)?({key})" for key in config.rank_pattern},
        "alpha_pattern": {key: rf"(.*\.)?({key})" for key in config.alpha_pattern},
    }
    for field, patterns in wanted.items():
        for value, pattern in patterns.items():
            if not any(re.fullmatch(pattern, name) for name in adapted):
                kinds = sorted({name.rpartition(".")[2] for name in adapted})
                raise ValueError(
                    f"{field}: {value!r} meets none of the {len(adapted)} modules that are "
                    f"adapted ({', '.join(kinds)}). Correct or remove it."
                )


def _is_neutral(field: Any, value: Any) -> bool:
    """Tell whether a field that is not supported says nothing: its default, or nothing at all."""
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        return not value or value in (default, getattr(default, "__dict__", None))
    return not value or value == field.default


def _check_pattern(key: str, value: Any) -> None:
    names = value if isinstance(value, (list, tuple, set)) else [value or ""]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"adapter.{key} is {value!r}; expected names, or a regular expression.")
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise ConfigError(
            f"adapter.{key} is {value!r}, which is no regular expression: {error}."
        ) from error


def _check_number(key: str, value: Any, *, least: int | None, where: str = "") -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = least == 1
    low = (value >= least if least is not None else value > 0) if is_number else False
    high = key != "lora_dropout" or (is_number and value < 1)
    if not (low and high) or (whole and not isinstance(value, int)):
        wanted = {"r": "a whole number from 1 up", "lora_alpha": "a number above 0"}
        raise ConfigError(
            f"adapter.{where or key} is {value!r}; expected "
            f"{wanted.get(key, 'a number from 0 up and below 1')}."
        )


EXPERT_ROUTERS = "gates.safetensors"
"""Beside the adapter's own files: W by module name. Other code calls W a gate."""


def add_expert_routers(model: Any, *, experts: int, adapter: str) -> None:
    """Put trainable expert routers on a ``PeftModel``'s adapter; they start equal, W = 0."""
    _attach(
        model,
        {n: torch.zeros(experts, down.in_features) for n, down in _downs(model, adapter)},
        adapter=adapter,
        trainable=True,
    )


def load_expert_routers(model: Any, folder: Path, *, adapter: str, trainable: bool) -> None:
    """Put on an adapter the expert routers that its folder holds, if any."""
    if (folder / EXPERT_ROUTERS).is_file():
        _attach(model, load_file(folder / EXPERT_ROUTERS), adapter=adapter, trainable=trainable)


def save_expert_routers(model: Any, folder: Path) -> None:
    """Write the expert routers that are being trained to an adapter's folder, if there are any."""
    if hasattr(model, "expert_routers"):
        save_file(
            {_dotted(name): router.detach().cpu() for name, router in model.expert_routers.items()},
            folder / EXPERT_ROUTERS,
        )


def restore_expert_routers(model: Any, folder: Path) -> None:
    """Set the expert routers that are being trained to what ``save_expert_routers`` wrote."""
    stored = load_file(folder / EXPERT_ROUTERS)
    with torch.no_grad():
        for name, router in model.expert_routers.items():
            router.copy_(stored[_dotted(name)])


def _downs(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield name and A of every module that the adapter adapts."""
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", ()):
            yield name, module.lora_A[adapter]


def _attach(model: Any, values: Mapping[str, Tensor], *, adapter: str, trainable: bool) -> None:
    routers = {}
    for name, down in _downs(model, adapter):
        routers[name] = nn.Parameter(values[name].to(down.weight), requires_grad=trainable)
        down.register_forward_hook(_scale_by(routers[name]))
    if trainable:
        # On the model as a whole: what is in an adapted module, peft saves with the adapter.
        model.expert_routers = nn.ParameterDict(
            {n.replace(".", "/"): router for n, router in routers.items()}
        )


def _dotted(name: str) -> str:
    return name.replace("/", ".")  # no parameter's own name may hold a dot


def _scale_by(router: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights = F.linear(inputs[0], router).softmax(-1)
        return (output.unflatten(-1, (len(router), -1)) * weights.unsqueeze(-1)).flatten(-2)

    return scale
