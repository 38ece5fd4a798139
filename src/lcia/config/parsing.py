"""From YAML and ``--set`` to a configuration; every problem named with its place."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import BaseModel

from lcia.errors import ConfigError
from lcia.registry import nearest


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number: YAML 1.1 wants a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or no keys in it.
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
    return tree


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
        return message if message.startswith(where) else f"{where}: {message}"
    return f"{where} is {problem['input']!r}: {message[0].lower()}{message[1:]}."


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the field names of the model that the keys of ``path`` lead to."""
    for key in path:
        field = kind.model_fields.get(key)
        kind = (_model_in(field.annotation) if field is not None else None) or kind
    return list(kind.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model of an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
