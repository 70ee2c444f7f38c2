"""`pv3d ablate`: the rows of the paper's ablation tables, trained, evaluated and printed.

    ablations/<size>.json, .md, .html     the tables, written again after every row

A row is a workflow with changes. Its training and its evaluation lie in the store as any others do, so what
is done is not done again, and a matrix that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from infra.lease import hold
from infra.storage import Storage
from pipelines.construct import validate
from pipelines.document import did_you_mean, parse
from pipelines.settings import Closed

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

FILE = Path(__file__).with_name("ablations.yaml")
FOLDER = "ablations"
ARROWS = {"lower": "↓", "higher": "↑"}

Changes = dict[str, Any]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]    # sizes are names of files
Cell = Annotated[str, Field(pattern=r"^[^|\x00-\x1f]+$")]    # on one line of a Markdown table


class Table(Closed):
    name: Word
    title: Cell
    rows: dict[Cell, Changes] = Field(min_length=1)


class Matrix(Closed):
    """An ablations file."""

    sizes: dict[Word, Changes] = Field(min_length=1)
    columns: dict[Cell, str] = Field(min_length=1)
    """What a column is headed, and which figure it shows."""
    tables: tuple[Table, ...] = Field(min_length=1)

    @field_validator("tables")
    @classmethod
    def _tables(cls, value: tuple[Table, ...]) -> tuple[Table, ...]:
        names = [table.name for table in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two are named {name}; rename one")
        return value


@dataclass
class Row:
    """One row of a table, and what became of it."""

    table: str
    name: str
    workflow: Workflow
    result: dict[str, Any] | None = None
    fault: str = ""

    @property
    def text(self) -> str:
        return f"{self.table} {self.name}"


def read_matrix(path: Path) -> Matrix:
    """Raises WorkflowError, one line with the place."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"{path}: cannot be read ({reason}); give an ablations file") from None
    return validate(Matrix, parse(text, str(path)), "ablations")


def rows(
    matrix: Matrix, size: str, only: str | None, path: str, profile: str | None, overrides: Sequence[str]
) -> list[Row]:
    """Every row's workflow, read and checked: the size's changes, the row's, then those asked for."""
    from pipelines.workflow import load

    if size not in matrix.sizes:
        raise ValueError(f"--size {size}: unknown{did_you_mean(size, matrix.sizes)}")
    names = [table.name for table in matrix.tables]
    wanted = names if only is None else [part.strip() for part in only.split(",")]
    for name in wanted:
        if name not in names:
            raise ValueError(f"--only {name}: no such table{did_you_mean(name, names)}")
    found = []
    for table in (table for table in matrix.tables if table.name in wanted):
        for name, changes in table.rows.items():
            sized = {key: _sized(value, size, matrix) for key, value in changes.items()}
            texts = [f"{key}={json.dumps(value)}" for key, value in {**matrix.sizes[size], **sized}.items()]
            try:
                found.append(Row(table.name, name, load(path, profile, [*texts, *overrides])))
                _check_apart(found)
            except ValueError as error:
                raise ValueError(f"row {table.name} {name}: {error}") from None
    return found


def _check_apart(found: Sequence[Row]) -> None:
    """Raise ValueError where the last row would go on with another's training, or lies in another store."""
    workflow = found[-1].workflow
    if workflow.train.name is not None:
        raise ValueError(
            f"train.name: all rows would share the training {workflow.train.name!r}; set train.name=null"
        )
    if workflow.storage != found[0].workflow.storage:
        raise ValueError("storage: is not that of the first row; all rows share one, so leave it out")


def _sized(value: Any, size: str, matrix: Matrix) -> Any:
    """The value of a setting that depends on the size: {small: 5, paper: 7}."""
    per_size = isinstance(value, dict) and value and set(value) <= set(matrix.sizes)
    if not per_size:
        return value
    if size not in value:
        raise ValueError(f"--size {size}: a row has no value for it; it has {', '.join(value)}")
    return value[size]


def ablate(
    ablations: Path | None, *, size: str, only: str | None, path: str, profile: str | None,
    overrides: Sequence[str], ray_address: str | None = None,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Train and evaluate what is not done yet, row by row, and print the tables.

    A row whose training stops, such as for a loss that is not finite, is told so in its place. Raises
    ValueError for a mistake in any row, before the first is trained, and when there is no dataset.
    """
    from infra import cluster
    from infra.tracking import check_tracking
    from pipelines.train import plan

    matrix = read_matrix(ablations or FILE)
    matrix_rows = rows(matrix, size, only, path, profile, overrides)
    first = matrix_rows[0].workflow
    store = first.store()
    store.check_writable()
    check_tracking(first.storage.tracking)
    jobs = [plan(row.workflow).name for row in matrix_rows]
    log.info("%d rows, %d trainings", len(jobs), len(set(jobs)))
    with hold(store, "pv3d ablate", expires_s=first.storage.lease_s):
        try:
            for done, row in enumerate(matrix_rows, start=1):
                log.info("row %d of %d: %s", done, len(matrix_rows), row.text)
                _do(row, ray_address)
                _write(store, size, matrix, matrix_rows)
        finally:
            cluster.stop()
    return to_json(size, matrix_rows), text(matrix, matrix_rows)


def _do(row: Row, ray_address: str | None) -> None:
    from pipelines.evaluate import evaluate
    from pipelines.train import train

    try:
        train(row.workflow, ray_address=ray_address, beside=True)
        row.result = evaluate(row.workflow)
    except ValueError as error:
        row.fault = str(error)
        log.warning("%s: %s", row.text, error)


# --- the tables ---------------------------------------------------------------------------------------------


def to_json(size: str, matrix_rows: list[Row]) -> dict[str, Any]:
    told = [
        {"table": row.table, "row": row.name, "fault": row.fault,
         "checkpoint": row.result and row.result["checkpoint"], "step": row.result and row.result["step"],
         "metrics": row.result and row.result["metrics"]}
        for row in matrix_rows
    ]  # fmt: skip
    return {"size": size, "rows": told}


def cells(matrix: Matrix, row: Row, notes: list[str]) -> list[str]:
    """One text per column. What has no number has a note, "-[2]", and so has a figure by another network than
    the listed one."""
    return [_cell(row, figure, notes) for figure in matrix.columns.values()]


def _cell(row: Row, figure: str, notes: list[str]) -> str:
    if row.result is None and not row.fault:
        return ""
    name, value = _figure(row, figure)
    number = "-" if value is None or value["value"] is None else f"{value['value']:.4g}"
    if value is None:
        note = row.fault or f"{figure} was not evaluated"
    elif number == "-":
        note = f"{name} was not computed: {value['reason']}"
    elif name == figure:
        return number
    else:
        note = f"{name}: {value['note']}"
    if note not in notes:
        notes.append(note)
    return f"{number}[{notes.index(note) + 1}]"


def _figure(row: Row, figure: str) -> tuple[str, dict[str, Any] | None]:
    """Its name and value."""
    from pipelines.evaluate import called

    found = row.result["metrics"] if row.result else {}
    name = called(figure, found)
    return name, found.get(name)


def headings(matrix: Matrix, matrix_rows: list[Row]) -> list[str]:
    """The columns, each with an arrow to where better is, once that is known."""
    made = []
    for name, figure in matrix.columns.items():
        known = (_figure(row, figure)[1] for row in matrix_rows)
        direction = next((value["direction"] for value in known if value), "")
        made.append(f"{name}{ARROWS.get(direction, '')}")
    return made


def _extent(matrix_rows: list[Row]) -> str:
    """How much stands behind the numbers."""
    first = matrix_rows[0].workflow
    name, settings = first.train.variant.rpartition(":")[2], first.evaluate
    videos = f"{settings.clips:,} videos from two sides, {settings.videos:,} for FVD"
    return f"{name}, {first.train.steps:,} updates; {videos}"


def tables(matrix: Matrix, matrix_rows: list[Row], notes: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, lines) of each table that has rows: the names and the cells."""
    for table in matrix.tables:
        mine = [row for row in matrix_rows if row.table == table.name]
        if mine:
            yield f"({table.name}) {table.title}", [[row.name, *cells(matrix, row, notes)] for row in mine]


def text(matrix: Matrix, matrix_rows: list[Row]) -> str:
    """All tables in Markdown, then the notes."""
    notes: list[str] = []
    heads = headings(matrix, matrix_rows)
    width = max(len(row.name) for row in matrix_rows)
    parts = [f"{_extent(matrix_rows)}\n"]
    for title, lines in tables(matrix, matrix_rows, notes):
        parts.append(f"{title}\n")
        parts.append(_line(["", *heads], width))
        parts.append(_line(["-" * width, *["-" * 9] * len(heads)], width))
        parts += [_line(line, width) for line in lines]
        parts.append("")
    parts += [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(parts).rstrip()


def _line(values: list[str], width: int) -> str:
    return " | ".join(["", values[0].ljust(width), *(value.rjust(9) for value in values[1:]), ""]).strip()


def _write(store: Storage, size: str, matrix: Matrix, matrix_rows: list[Row]) -> None:
    from pipelines.page import Section, render

    notes: list[str] = []
    heads = headings(matrix, matrix_rows)
    sections = [
        Section(title=title, columns=["", *heads], rows=lines)
        for title, lines in tables(matrix, matrix_rows, notes)
    ]
    if notes:
        said = [[f"[{number}]", note] for number, note in enumerate(notes, start=1)]
        sections.append(Section(title="Notes", columns=["", ""], rows=said))
    done = sum(row.result is not None for row in matrix_rows)
    facts = [("size", size), ("rows", f"{done} of {len(matrix_rows)} done"), ("extent", _extent(matrix_rows))]
    told = json.dumps(to_json(size, matrix_rows), indent=1, allow_nan=False)
    store.write(f"{FOLDER}/{size}.md", f"{text(matrix, matrix_rows)}\n".encode())
    store.write(f"{FOLDER}/{size}.html", render("ablations", facts, sections).encode())
    store.write(f"{FOLDER}/{size}.json", told.encode())
