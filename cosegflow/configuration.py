"""Frozen dataclasses as configurations: read from YAML and from dotted command-line options, written as YAML.

A configuration is a tree of frozen dataclasses; its leaves are *settings* with dotted names such as
``train.weights.cycle``. The string below a field is its documentation: help text and YAML comment both show it.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigurationError(ValueError):
    """A setting that cannot be used; one line that names it, and where it came from."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A leaf of a configuration."""

    name: str
    """Dotted, such as train.weights.cycle."""
    kind: Any
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Given:
    """A value as it was given, and where: the file and key, or the option."""

    value: Any
    origin: str


def field_documentation(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line; {} where the source is not at hand."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[statement.target.id] = " ".join(after.value.value.split())
    return found


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field, hints[field.name]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def settings(kind: type, prefix: str = "") -> Iterator[Setting]:
    """All leaves of the dataclass `kind`, depth first."""
    documentation = field_documentation(kind)
    for field, hint in _fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings(hint, name + ".")
        else:
            yield Setting(name, hint, _default(field), documentation.get(field.name, ""))


def describe(kind: Any) -> str:
    """What a value of this kind is, for messages and help: "a whole number", "'a' or 'b'"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in arguments)
    if origin is tuple:
        return "a list, each " + describe(arguments[0])
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}[kind]


def short(kind: Any) -> str:
    """What a value of this kind is, in one word of the help: N, X, PATH, a|b."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return short(arguments[0])
    if origin is tuple:
        return short(arguments[0]) + ",..."
    return {bool: "true|false", int: "N", float: "X", str: "NAME", Path: "PATH"}[kind]


def _convert(value: Any, kind: Any) -> Any:
    """`value`, from YAML or text, as `kind`; ValueError where it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # "none" is a value of paths: stamps of no folder (`load_library`).
        nothing = ("null", "") if Path in arguments else ("null", "none", "")
        if value is None or (isinstance(value, str) and value.lower() in nothing):
            return None if type(None) in arguments else _convert(value, arguments[0])
        for choice in arguments:
            if choice is not type(None):
                try:
                    return _convert(value, choice)
                except ValueError:
                    continue
        raise ValueError
    if origin is typing.Literal:
        for choice in arguments:
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError
        return tuple(_convert(part, arguments[0]) for part in parts)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise ValueError
    if kind is int:
        if isinstance(value, float) and value != int(value):
            raise ValueError
        return int(value)
    if kind is float:
        number = float(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        return number
    return kind(str(value))


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message that asks for the most similar of the known words, `prefix` before it; else nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix + found[0]!r}?" if found else ""


def build(kind: type[T], given: Mapping[str, Given], prefix: str = "") -> T:
    """The dataclass with the given settings (by dotted name) and defaults for all others.

    Raises:
        ConfigurationError: a value of the wrong kind, or one that the dataclass itself rejects.
    """
    values: dict[str, Any] = {}
    for field, hint in _fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            values[field.name] = build(hint, given, name + ".")
        elif name in given:
            try:
                values[field.name] = _convert(given[name].value, hint)
            except (ValueError, OverflowError):
                raise ConfigurationError(
                    f"{given[name].origin}: need {describe(hint)}, got {given[name].value!r}"
                ) from None
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{prefix}{error}") from None


def flatten(tree: Mapping[Any, Any], kind: type, origin: str, prefix: str = "") -> dict[str, Given]:
    """A nested mapping (from YAML) as dotted settings.

    Raises:
        ConfigurationError: a key that `kind` does not have; the message names the nearest that it has.
    """
    hints = {field.name: hint for field, hint in _fields(kind)}
    found: dict[str, Given] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in hints:
            suggestion = nearest(str(key), hints, prefix)
            elsewhere = [s.name for s in settings(kind, prefix) if s.name.rpartition(".")[2] == key]
            if elsewhere:
                suggestion = f"; did you mean {elsewhere[0]!r}?"
            raise ConfigurationError(f"{origin}: {name} is no setting{suggestion}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{origin}: {name}: need a section of settings, got {value!r}")
            found |= flatten(value, hint, origin, name + ".")
        else:
            found[name] = Given(value, f"{origin}: {name}")
    return found


def _repeated_key(node: Any, prefix: str = "") -> str | None:
    """The dotted name of a key that a YAML mapping has twice (PyYAML would drop the first, whole sections too)."""
    import yaml

    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}{key.value}"
        if name in seen:
            return name
        seen.add(name)
        below = _repeated_key(value, name + ".")
        if below is not None:
            return below
    return None


def read_yaml(path: Path, kind: type, argument: str) -> dict[str, Given]:
    """The settings of a YAML file, by dotted name.

    Raises:
        ConfigurationError: no such file, no YAML, or a key that `kind` does not have.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigurationError(f"{argument}: {path}: {reason}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"{argument}: {path}: is not YAML ({reason})") from None
    if repeated is not None:
        raise ConfigurationError(f"{argument}: {path}: {repeated} comes twice")
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ConfigurationError(f"{argument}: {path}: need sections of settings, got {type(tree).__name__}")
    return flatten(tree, kind, str(path))


def to_plain(configuration: Any) -> dict[str, Any]:
    """Nested dicts of plain values (paths as text, tuples as lists), for YAML and JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_plain(value)
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {field.name: plain(getattr(configuration, field.name)) for field in dataclasses.fields(configuration)}


def to_yaml(configuration: Any, indent: str = "") -> str:
    """The whole configuration as YAML, each setting with its documentation as a comment."""
    import yaml

    documentation = field_documentation(type(configuration))
    plain = to_plain(configuration)
    lines = []
    for name, value in plain.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            lines.append(to_yaml(getattr(configuration, name), indent + "  ").rstrip("\n"))
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        comment = f"  # {documentation[name]}" if name in documentation else ""
        lines.append(f"{indent}{name}: {text}{comment}")
    return "\n".join(lines) + "\n"


def differences(old: Any, new: Any) -> list[str]:
    """Dotted names of the settings in which two configurations of one type differ."""

    def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    before, after = leaves(to_plain(old)), leaves(to_plain(new))
    return [name for name in after if before.get(name) != after[name]]
