"""YAML that remembers where each value was written.

Scalars follow YAML 1.2: `2e-3` is a number, `no` and `12:30` are text. Duplicate keys and tags are refused,
because a run should say what it means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

SECTIONS = (
    "storage", "source", "policy", "stages", "ray", "train", "evaluate", "register", "schedule", "profiles",
)  # fmt: skip
MOST_VALUES = 100_000


class WorkflowError(ValueError):
    """A mistake in a workflow; the message is one line that starts with its place."""


@dataclass
class Value:
    """One YAML value: a scalar, a dict of `Value` or a list of `Value`, with the place it was written at."""

    data: Any
    place: str                  # "workflow.yaml:12:5" or "--set train.steps=x"
    key_place: str = ""         # of the key in front of it, when it has one

    @property
    def of_key(self) -> str:
        """Place of the key, where there is one."""
        return self.key_place or self.place

    def error(self, message: str) -> WorkflowError:
        """A mistake in this value."""
        return WorkflowError(f"{self.place}: {message}")

    def key_error(self, message: str) -> WorkflowError:
        """A mistake in the key of this value."""
        return WorkflowError(f"{self.of_key}: {message}")

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.data, dict):
            return {key: value.plain() for key, value in self.data.items()}
        if isinstance(self.data, list):
            return [value.plain() for value in self.data]
        return self.data

    def at(self, path: Sequence[str | int]) -> Value:
        """The value at `path`, or the nearest one around it."""
        here = self
        for key in path:
            in_list = isinstance(here.data, list) and isinstance(key, int) and key < len(here.data)
            if not in_list and not (isinstance(here.data, dict) and key in here.data):
                break
            here = here.data[key]
        return here


class _Loader(yaml.SafeLoader):
    """Resolves YAML 1.2 scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def _scalar(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if len(text) < 100 and _INT.fullmatch(text):  # longer ones Python may refuse to read
        return int(text, 10 if text[:2] not in ("0o", "0x") else 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


def parse(text: str, name: str) -> Value:
    """Read one YAML document. Raises WorkflowError with file, line and column."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return _built(node, name)
    except RecursionError:
        raise WorkflowError(f"{name}: nested too deeply; a workflow has a few levels") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise WorkflowError(f"{place}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise WorkflowError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


def _built(node: yaml.Node | None, name: str) -> Value:
    if node is None:
        raise WorkflowError(f"{name}: empty; see the example in the README")
    _count(node, name, {})
    return _build(node, name, ())


def _count(node: yaml.Node, name: str, known: dict[int, int]) -> int:
    """Values below a node with its aliases written out. Raises WorkflowError when they are absurdly many: a
    few lines of aliases to aliases can stand for more than fits into memory."""
    if id(node) not in known:
        known[id(node)] = 1  # also for an alias inside the value that it names, which `_build` refuses
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] += sum(_count(n, name, known) for n in inner)
        if known[id(node)] > MOST_VALUES:
            place = f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
            raise WorkflowError(f"{place}: more than {MOST_VALUES:,} values; this is no workflow")
    return known[id(node)]


def parse_inline(text: str, place: str) -> Value:
    """Read the value of a `--set`; every part of it has the same place."""
    if not text.strip():
        return Value(None, place)
    try:
        node = yaml.compose(text, Loader=_Loader)
        return _moved(_built(node, place) if node else Value(None, place), place)
    except RecursionError:
        raise WorkflowError(f"{place[:60]}...: nested too deeply; a setting has a few levels") from None
    except yaml.YAMLError:
        raise WorkflowError(f"{place}: the value is not YAML; quote it, as in --set 'key=\"a: b\"'") from None


def _moved(value: Value, place: str) -> Value:
    data = value.data
    if isinstance(data, dict):
        data = {key: _moved(item, place) for key, item in data.items()}
    elif isinstance(data, list):
        data = [_moved(item, place) for item in data]
    return Value(data, place, place)


def _build(node: yaml.Node, name: str, around: tuple[yaml.Node, ...]) -> Value:
    place = f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    if any(node is outer for outer in around):
        raise WorkflowError(f"{place}: an alias inside the value that it names; write the value out")
    if isinstance(node, yaml.ScalarNode):
        if node.tag not in ("tag:yaml.org,2002:str", None) and node.tag != "!":
            raise WorkflowError(f"{place}: YAML tags such as {node.tag!r} are not used here; remove it")
        return Value(_scalar(node.value) if node.style is None else node.value, place)
    if not node.tag.startswith("tag:yaml.org,2002:"):
        raise WorkflowError(f"{place}: YAML tags such as {node.tag!r} are not used here; remove it")
    if isinstance(node, yaml.SequenceNode):
        return Value([_build(item, name, (*around, node)) for item in node.value], place)
    entries: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key_place = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise WorkflowError(f"{key_place}: a key must be plain text")
        if key_node.value in entries:
            first = entries[key_node.value].key_place
            raise WorkflowError(f"{key_place}: {key_node.value}: written twice (first at {first}); keep one")
        value = _build(value_node, name, (*around, node))
        entries[key_node.value] = Value(value.data, value.place, key_place)
    return Value(entries, place)


def did_you_mean(word: str, known: Iterable[str], *, in_order: bool = False) -> str:
    """", did you mean 'size'?", or what is known when nothing is near: sorted, unless their order tells."""
    choices = list(known) if in_order else sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; known: {', '.join(choices)}" if choices else "; it has no settings"
