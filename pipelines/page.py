"""One HTML page without external assets, in the look of the report: facts, then sections of text, tables,
plots, a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

LONG = 30  # characters of a cell


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

    @property
    def kinds(self) -> list[str]:
        """Of each column, its class: numbers stand below each other on the right, long texts get room."""
        return [_kind([row[place] for row in self.rows]) for place in range(len(self.columns))]


def _kind(cells: Sequence[str]) -> str:
    if any(len(cell) >= LONG for cell in cells):
        return "small wide"
    return "number" if any(cell.startswith(tuple("-0123456789")) for cell in cells) else "text"


def render(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(title=title, facts=facts, sections=sections)
