"""Frozen dataclasses of settings as plain values and back, every key and type checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain numbers, strings, lists and dictionaries (JSON or YAML can hold it)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def from_dict(cls: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """The inverse of `to_dict`. An unknown key, a missing one or a wrong type is a `ValueError` that names
    it."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {where + key!r} in {cls.__name__}; {suggest(key, known)}")
    for name, f in known.items():
        no_default = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if no_default and name not in values:
            raise ValueError(f"{cls.__name__} needs {where + name!r}; add it")
    arguments = {key: _typed(hints[key], value, where + key) for key, value in values.items()}
    return cls(**arguments)


def with_changes(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with keys changed, dotted or nested, e.g. `{"motion.blocks": 7}`; checked like `from_dict`."""
    values = to_dict(config)
    for dotted, value in _dotted(changes):
        *path, last = dotted.split(".")
        target = values
        for part in path:
            if not isinstance(target.get(part), dict):
                raise ValueError(
                    f"unknown key {dotted!r} in {type(config).__name__}; {suggest(part, target)}"
                )
            target = target[part]
        target[last] = value
    return from_dict(type(config), values)


def _dotted(changes: dict[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` asks, or a `ValueError`."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return from_dict(typing.cast(Any, hint), value, f"{where}.")
        return _demand(isinstance(value, typing.cast(type, hint)), value, where, "a table of settings")
    if origin is Literal:
        options = typing.get_args(hint)
        return _demand(value in options, value, where, f"one of {', '.join(map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _typed(option, value, where)
            except ValueError:
                continue
        raise ValueError(f"{where} is {value!r}; give {_describe(hint)}")
    if origin is tuple:
        _demand(isinstance(value, list | tuple), value, where, "a list")
        return tuple(_typed(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float:
        _demand(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
                value, where, "a finite number")  # fmt: skip
        return float(value)
    if hint is int:
        return _demand(isinstance(value, int) and not isinstance(value, bool), value, where, "a whole number")
    names = {bool: "true or false", str: "text", type(None): "null"}
    return _demand(isinstance(value, hint), value, where, names.get(hint, str(hint)))


def _describe(hint: Any) -> str:
    return str(hint).replace("typing.", "").replace("NoneType", "null")


def _demand(ok: bool, value: Any, where: str, cure: str) -> Any:
    if not ok:
        raise ValueError(f"{where} is {value!r}; give {cure}")
    return value


def require(ok: bool, name: str, value: Any, cure: str) -> None:
    """Raise ValueError with name, value and cure unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value!r}; give {cure}")


def suggest(key: str, known: typing.Iterable[str]) -> str:
    """The nearest of the known keys, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
