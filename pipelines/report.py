"""The report of a run: one HTML file without external assets, of what the store and the tracking server hold
now."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.storage import FolderStorage, Storage

if TYPE_CHECKING:
    from pipelines.ledger import Ledger, Ref
    from pipelines.policy import Policy
    from pipelines.progress import Progress
    from pipelines.report_figures import Seen
    from pipelines.report_walk import Walk
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

KEY = "report/index.html"
RECORDS, NUMBERS, PICTURES = "report: records", "report: numbers", "report: pictures"


def report(workflow: Workflow, out: Path | None = None) -> str:
    """Write `report/index.html` into the store, or the file `out`; returns where it is.

    Raises ValueError where `out` cannot be written.
    """
    if out is not None:
        _check_out(out)
    store = workflow.store()
    # A file name need not be text: what of it cannot be written is a question mark.
    page = render(collect(workflow, store)).encode(errors="replace")
    if out is not None:
        part = out.with_name(f".{out.name}.{os.getpid()}")
        part.write_bytes(page)
        part.replace(out)
        return str(out)
    store.write(KEY, page)
    return str(store.path(KEY)) if isinstance(store, FolderStorage) else f"{store.root}/{KEY}"


def _check_out(out: Path) -> None:
    """Before the work, not after it."""
    if out.is_dir():
        raise ValueError(f"--out {out}: is a folder; name a file, such as {out / 'report.html'}")
    if out.exists() and not out.is_file():   # a device or a pipe would be replaced by a file
        raise ValueError(f"--out {out}: is neither a file nor free; name a file, such as report.html")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: {os.strerror(errno.EACCES)}; name a file that can be written")


def render(data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(**data)


def collect(workflow: Workflow, store: Storage) -> dict[str, Any]:
    """Everything that the template shows."""
    from pipelines import report_figures as figures
    from pipelines import report_tables as tables
    from pipelines.groups import in_storage_order
    from pipelines.ledger import Ledger
    from pipelines.policy import Policy
    from pipelines.progress import Progress
    from pipelines.report_sources import source_tables
    from pipelines.report_training import evaluation_section, model_section, training_section
    from pipelines.report_walk import walk

    with Progress([RECORDS, NUMBERS, PICTURES]) as progress:

        def expected(records: int) -> None:
            progress.again()
            progress.expect(RECORDS, records)

        def passed() -> None:
            progress.done(RECORDS)
            progress.tick()

        def read() -> None:
            progress.done(NUMBERS)
            progress.tick()

        found, ledger = walk(workflow, expected, passed), Ledger(store)
        progress.again()  # records that do not hold any more were counted, too
        stage, chosen = found.shown
        policy = Policy(workflow, store)
        shown = [ref for ref in chosen.items() if not policy.stops(ref, ledger)]
        sample = in_storage_order(shown)
        progress.expect(NUMBERS, len(sample))
        aggregate = figures.aggregate_of(workflow)
        seen = figures.measure(ledger, sample, aggregate, read)
        unlike = figures.rejected_scores(ledger, in_storage_order(found.scored.items()), aggregate)
        pictures = _pictures(policy, ledger, found, shown, seen, progress)
    made = tables.dataset(store)
    return {
        "states": tables.STATES,
        "run": tables.run(workflow, store),
        "dataset": made,
        "dataset_of": tables.dataset_of(found, made),
        "tiles": tables.tiles(found, seen, made),
        "stages": tables.stages(found),
        "todo": sum(tally.counts.todo for tally in found.tallies),
        "again": sum(tally.counts.again for tally in found.tallies),
        "flow": tables.flow(found),
        "lost_total": sum(tally.lost for tally in found.tallies),
        "by_reason": tables.losses_by_reason(found),
        "units": found.units.items(),
        "units_total": found.units.offered,
        "losses": tables.losses(found),
        "figures": figures.figures(workflow, seen, found, unlike),
        "sources": source_tables(store, seen),
        "sampled": seen.clips,
        "chosen_from": chosen.offered,
        "stage_shown": stage,
        **pictures,
        "training": training_section(workflow, store),
        "evaluation": evaluation_section(workflow, store),
        "model": model_section(workflow, store),
    }


def _pictures(
    policy: Policy, ledger: Ledger, found: Walk, refs: list[Ref], seen: Seen, progress: Progress
) -> dict[str, Any]:
    """Contact sheets, and cameras over frames."""
    from pipelines import report_sheets as sheets

    def drawn() -> None:
        progress.done(PICTURES)
        progress.tick()

    store = ledger.store
    album = sheets.Album(store, sheets.PICTURE_BYTES, sheets.PICTURE_SECONDS, drawn)
    shown = refs[: sheets.KEPT_SHOWN]
    wanted = sheets.posed(seen, shown)
    progress.expect(PICTURES, len(wanted) + len(shown) + sheets.pictures_of(found))
    # Cameras first: what is likely to be left out for want of room comes last.
    posed = sheets.posed_rows(album, ledger, wanted)
    return {
        "posed": posed,
        "kept": sheets.kept_rows(album, ledger, shown),
        "sheets": sheets.rejected_sheets(album, ledger, policy, found),
        "poses": sheets.pose_rows(store, ledger, found),
        "left_out": album.text,
    }
