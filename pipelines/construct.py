"""From text to objects: import paths, typed settings, dataclasses. Every mistake keeps its place."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import typing
from collections.abc import Iterable, Sequence
from importlib.machinery import SourceFileLoader
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipelines.document import Value, did_you_mean

T = TypeVar("T", bound=BaseModel)

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def settings_of(thing: Any) -> dict[str, Any]:
    """Field values of a dataclass of settings, as JSON values."""
    values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=_plain))
    return plain


def output_settings(stage: Any, access: bool = False) -> dict[str, Any]:
    """Settings that decide what comes out of a stage; with `access`, also those that say who asks for it."""
    marks = {f.name: f.metadata for f in dataclasses.fields(stage)}
    return {
        name: value for name, value in settings_of(stage).items()
        if marks[name].get("output", True) or (access and marks[name].get("access"))
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def import_path(use: Value, dotted: str) -> Any:
    """The class or function at an import path "package.module:Name"."""
    path = use.data
    if not isinstance(path, str) or not _IMPORT_PATH.fullmatch(path):
        raise use.error(f"{dotted}: {path!r} is no import path; write package.module:Name")
    module_name, _, attribute = path.partition(":")
    module = _module(module_name, use, dotted)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [name for name, value in vars(module).items() if callable(value)])
        raise use.error(f"{dotted}: {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)


def _module(name: str, use: Value, dotted: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise use.error(f"{dotted}: no module {name!r}; check the spelling") from None
        raise use.error(
            f"{dotted}: {name} needs the package {error.name!r}; install pv3d-pipeline[all]"
        ) from None


def check_paths(settings: dict[str, Any], entry: Value, dotted: str) -> None:
    """Refuse settings that look like an import path and lead nowhere. Nothing heavy is imported: the name is
    looked for in the source of its module."""
    for key, path in settings.items():
        if not isinstance(path, str) or not _IMPORT_PATH.fullmatch(path):
            continue
        module, _, attribute = path.partition(":")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise entry.at([key]).error(f"{dotted}.{key}: no module {module!r}; check the spelling")
        source = spec.loader.get_source(module) if isinstance(spec.loader, SourceFileLoader) else None
        if source is not None and not re.search(rf"\b{attribute}\b", source):
            hint = did_you_mean(attribute, re.findall(r"^(?:class|def) (\w+)", source, re.MULTILINE))
            raise entry.at([key]).error(f"{dotted}.{key}: {module} has no {attribute!r}{hint}")


def construct(cls: type, entry: Value, dotted: str, known_elsewhere: Iterable[str] = ()) -> Any:
    """Build a dataclass of settings from a mapping, every type checked."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.init:
            default = f.default if f.default is not dataclasses.MISSING else ...
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else default
            fields[f.name] = (hints[f.name], default)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model = create_model(cls.__name__, __config__=config, **fields)
    checked = validate(model, entry, dotted, known_elsewhere)
    try:
        return cls(**{name: getattr(checked, name) for name in fields})
    except ValueError as error:
        field, _, rest = str(error).partition(":")
        field = field.rsplit(".", 1)[-1].strip()
        if rest and field in fields:
            at = entry.at([field])
            raise at.error(f"{dotted}.{field}:{rest}") from None
        raise entry.error(f"{dotted}: {error}") from None


def validate(model: type[T], value: Value, dotted: str, known_elsewhere: Iterable[str] = ()) -> T:
    """Check a value against a closed model; the first error becomes a WorkflowError at its place."""
    if not isinstance(value.data, dict):
        raise value.error(f"{dotted}: must be a mapping of settings")
    try:
        return model.model_validate_json(json.dumps(value.plain()))
    except ValidationError as error:
        # A misspelt key is also a missing one: name what was written.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [part for part in first["loc"] if isinstance(part, (str, int))]
    full = ".".join([dotted, *(str(part) for part in path)])
    at = value.at(path)
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1]) if path[:-1] else {*model.model_fields, *known_elsewhere}
        raise at.key_error(f"{full}: unknown setting{did_you_mean(str(path[-1]), fields)}") from None
    if first["type"] == "missing":
        raise at.key_error(f"{full}: missing; set it") from None
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = "" if isinstance(at.data, (dict, list)) else f", not {json.dumps(at.data)}"
    given = "" if first["type"] == "value_error" else given
    raise at.error(f"{full}: {message[0].lower()}{message[1:]}{given}") from None


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> set[str]:
    here: Any = model
    for key in path:
        if isinstance(key, int):  # an item of a list
            here = next(iter(typing.get_args(here)), None)
            continue
        if typing.get_origin(here) is dict:  # whose keys are names
            here = typing.get_args(here)[1]
            continue
        is_model = isinstance(here, type) and issubclass(here, BaseModel)
        info = here.model_fields.get(str(key)) if is_model else None
        here = info.annotation if info else None
    if isinstance(here, type) and issubclass(here, BaseModel):
        return set(here.model_fields)
    return {f.name for f in dataclasses.fields(here)} if dataclasses.is_dataclass(here) else set()
