"""One HTML page without external assets, in the look of the report: facts, then sections of text, tables,
plots, a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A plot of `pipelines.svg`."""

    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Figure] = ()
    video: str = ""
    """A data URI, as `picture` is."""
    picture: str = ""


def render(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(title=title, facts=facts, sections=sections)
