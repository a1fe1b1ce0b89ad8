"""The one place where a `Config` comes to be: defaults < file < environment < flags."""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflower.config.address import server_address
from dataflower.config.settings import Composed, Config, Origin
from dataflower.config.text import read_text
from dataflower.errors import DataflowerError, InvalidArgument, Problem
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.units import parse_duration, parse_size

PREFIX = "DATAFLOWER_"
OTHER_VARIABLES = frozenset(
    {"DATAFLOWER_CACHE", "DATAFLOWER_FAILPOINTS", "DATAFLOWER_HOST", "DATAFLOWER_KERNELS", "DATAFLOWER_STORE"}
)
"""Those that are no settings: of the cache folder, tests, compiled kernels, and what a host tells its containers."""
FILES = ("dataflower.toml", "dataflower.yaml", "dataflower.yml")
"""Looked for in the working directory, in this order, when no file is named."""

_FIELDS = {f.name: f for f in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


class ConfigInvalid(InvalidArgument):
    """Settings that can't be read, a line for each: in which file and line, or in which variable or flag."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))


def compose(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Composed:
    """Compose the configuration.

    Args:
        flags: settings given on the command line; None values count as not given.
        file: a file to read instead of the first of `FILES` found in `directory`.
        environment: instead of `os.environ`.
        directory: instead of the working directory.

    Raises:
        ConfigInvalid: with every problem found.
    """
    environment = os.environ if environment is None else environment
    file = file or _find(directory or Path.cwd())
    values: dict[str, Any] = {}
    origins = {name: Origin("default") for name in _FIELDS}
    problems: list[str] = []

    def put(name: str, value: Any, origin: Origin, at: str) -> None:
        try:
            values[name] = read(name, value)
            origins[name] = origin
        except (ValueError, TypeError) as error:
            problems.append(f"{at}: {name}: {error}")

    if file is not None:
        text, content = _parse(file)
        for name, value in content.items():
            line = _line(text, name)
            if name not in _FIELDS:
                problems.append(str(Problem(str(file), line, 1, f"unknown setting {name!r}", _nearest(name))))
            else:
                put(name, value, Origin("file", str(file)), f"{file}:{line}:1")
    for name in _FIELDS:
        variable = PREFIX + name.upper()
        if (given := environment.get(variable)) not in (None, ""):
            put(name, given, Origin("environment", variable), variable)
    for name, value in (flags or {}).items():
        if value is not None:
            put(name, value, Origin("flag"), "--" + name.replace("_", "-"))
    if problems:
        raise ConfigInvalid(problems)
    return Composed(Config(**values), origins, _strange(environment))


def _strange(environment: Mapping[str, str]) -> tuple[str, ...]:
    """A note for each variable that was meant for us and sets nothing."""
    known = {PREFIX + name.upper() for name in _FIELDS}
    unknown = sorted(n for n in environment if n.startswith(PREFIX) and n not in known | OTHER_VARIABLES)
    return tuple(f"{name} is set, and sets nothing ({_nearest(name, known)})" for name in unknown)


def read(name: str, value: Any) -> Any:
    """Bring a value, which may be text from a variable or a file, to the type of the setting `name`.

    Raises:
        ValueError: it does not fit; the message says what would.
    """
    type_ = _TYPES[name]
    if name == "server":
        return server_address(str(value))
    if isinstance(type_, types.UnionType):
        if value is None or value == "none":
            return None
        type_ = next(t for t in typing.get_args(type_) if t is not type(None))
    if type_ is Path:
        return Path(str(value)).expanduser()
    if typing.get_origin(type_) is tuple:
        separator = os.pathsep if name.endswith(("_path", "_paths")) else ","
        parts = value.split(separator) if isinstance(value, str) else value
        return tuple(str(part) for part in parts if str(part))
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        try:
            return type_(value)
        except ValueError:
            raise ValueError(f"expected {', '.join(str(m.value) for m in type_)}, not {value!r}") from None
    if type_ is bool:
        return _truth(value)
    if isinstance(value, bool):
        raise ValueError(f"expected {type_.__name__}, not {value!r}")
    if type_ is float:
        return parse_duration(_number(value))
    if type_ is int and name.endswith("_bytes"):
        return parse_size(_number(value))
    if type_ is int:
        return _whole(value)
    return str(value)


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"expected true or false, not {value!r}")
    return word in _TRUE


def _whole(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"expected a whole number, not {value!r}") from None


def _number(value: Any) -> Any:
    """Digits from a variable or a flag are the number that a file would have held."""
    if isinstance(value, str) and re.fullmatch(r"\d+", value):
        return int(value)
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d*\.\d+", value) else value


def _find(directory: Path) -> Path | None:
    return next((directory / name for name in FILES if (directory / name).is_file()), None)


def _parse(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_text(file)
    except DataflowerError as error:
        raise ConfigInvalid([error.message]) from None
    content = _toml(file, text) if file.suffix == ".toml" else _yaml(file, text)
    if not isinstance(content, dict):
        raise ConfigInvalid([f"{file}:1:1: expected settings, name and value"])
    return text, {str(name): value for name, value in content.items()}


def _toml(file: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigInvalid([str(_unreadable(file, text, error))]) from error


def _yaml(file: Path, text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text) or {}
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        raise ConfigInvalid([str(_unreadable(file, text, error))]) from error


def _unreadable(file: Path, text: str, error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(str(file), 1, 1, "nested too deeply")
    language = "TOML" if file.suffix == ".toml" else "YAML"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        what = str(getattr(error, "problem", error))
        return Problem(str(file), mark.line + 1, mark.column + 1, f"not valid {language}: {what}")
    where = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    line, column = (int(n) for n in where.groups()) if where else (1, 1)
    if "(at end of document)" in str(error):
        line = max(1, len(text.splitlines()))
    what = re.sub(r" \(at .*\)", "", str(error))
    return Problem(str(file), line, column, f"not valid {language}: {what}")


def _line(text: str, name: str) -> int:
    pattern = re.compile(rf"\s*[\"']?{re.escape(str(name))}[\"']?\s*[=:]")
    return next((i for i, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _nearest(name: str, known: Iterable[str] = _FIELDS) -> str:
    return did_you_mean(name, known, "`dataflower config` lists the settings")
