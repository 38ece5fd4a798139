"""From YAML and ``--set`` to a configuration; every problem named with its place."""

import copy
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import BaseModel

from lcia.errors import ConfigError
from lcia.files import content_of
from lcia.registry import nearest

VALUES_LIMIT = 100_000
"""Values in a configuration, those behind aliases counted each time."""

DEPTH_LIMIT = 50


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number (YAML 1.1 wants a dot in it) and no key stands twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; one that YAML's own types refuse is told with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            name = node.tag.rpartition(":")[2]
            problem = f"expected a value of type {name}, found {quoted(node.value)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Open a bracket, unless too many are open: the time to scan them grows as their square."""
        super().fetch_flow_collection_start(token)
        if self.flow_level > DEPTH_LIMIT:
            problem = f"brackets are nested more than {DEPTH_LIMIT} deep"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace merge keys by what they merge in, which the mapping's own keys override."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {quoted(key.value)} stands twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        super().flatten_mapping(node)


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
        content = content_of(path)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start + 1} of the file is not UTF-8. Save it as UTF-8."
        ) from error
    tree = _yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}.")
    return tree


def _yaml(text: str, *, where: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ConfigError: it is not YAML, a key is no text, or it is nested without end.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{where}: is not YAML: {reason}{place}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: is nested more than {DEPTH_LIMIT} deep.") from error
    left, count = [(value, 0)], 0
    while left:
        inner, depth = left.pop()
        count += 1
        if depth > DEPTH_LIMIT:
            raise ConfigError(f"{where}: is nested more than {DEPTH_LIMIT} deep.")
        if count > VALUES_LIMIT:
            raise ConfigError(
                f"{where}: holds more than {VALUES_LIMIT:,} values, those behind aliases counted "
                "each time."
            )
        if isinstance(inner, dict):
            for key in inner:
                if not isinstance(key, str):
                    raise ConfigError(
                        f"{where}: the key {quoted(key)} is no text. Put it in quotes."
                    )
            left += [(item, depth + 1) for item in inner.values()]
        elif isinstance(inner, list):
            left += [(item, depth + 1) for item in inner]
    return value


def quoted(value: Any) -> str:
    """Return ``repr(value)`` short enough for a message."""
    text = reprlib.repr(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


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
        found = error.errors()
        # What is wrong inside of a list is left out of it, which then seems too short.
        inner = {p["loc"][:n] for p in found for n in range(len(p["loc"]))}
        problems = [_explain(kind, p) for p in found if p["loc"] not in inner]
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
        node[int(last) if isinstance(node, list) else last] = _yaml(text, where=f"--set {override}")
    except ConfigError:
        raise
    except (ValueError, IndexError) as error:
        raise ConfigError(f"--set {override}: no such entry: {error}.") from error


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
    return f"{where} is {quoted(problem['input'])}: {message[0].lower()}{message[1:]}."


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
