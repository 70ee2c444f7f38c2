"""What a group stage gets and gives: whole clips, or light ones where a group is large (`whole_clips`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from pipelines.ledger import Ledger, Ref, holds, in_pages
from pipelines.pools import Work
from pipelines.spool import Spool
from pipelines.work import Piece
from pipelines.workflow import Step
from stages.base import GroupStage, Stage
from stages.clip import Clip

PAGE = 256                                   # units that are looked up at a time


def clips_of(work: Work, ledger: Ledger) -> list[Clip]:
    """The clips that a work's stages get, in the order of its refs. Raises LostSegmentError."""
    stage = work.pool.steps[0].stage
    found: dict[str, Clip] = {}
    refs = in_storage_order(work.refs)
    for ref, clip in zip(refs, ledger.clips(refs, stage.reads if is_light(stage) else None), strict=True):
        found[ref.id] = light(clip, stage.reads) if is_light(stage) else clip
    return [found[ref.id] for ref in work.refs]


def is_light(stage: Stage | GroupStage) -> bool:
    """Whether a stage asks for light clips."""
    return isinstance(stage, GroupStage) and not stage.whole_clips


def light(clip: Clip, names: tuple[str, ...]) -> Clip:
    """A copy with these of its arrays only."""
    arrays = [f.name for f in dataclasses.fields(clip) if isinstance(getattr(clip, f.name), np.ndarray)]
    return clip.copy(**{name: None for name in arrays if name not in names})


def restore(piece: Piece, whole: Clip, writes: tuple[str, ...]) -> None:
    """Put what a stage wrote on a light clip onto the whole clip, which becomes the outcome."""
    (done,), (output,) = piece.clips, piece.outputs
    whole = whole.copy(**{name: getattr(done, name) for name in writes if not name.startswith("extra.")})
    for name in (name.removeprefix("extra.") for name in writes if name.startswith("extra.")):
        if name in done.extra:
            whole.extra[name] = done.extra[name]
    piece.clips, output.digest = [whole], whole.digest()


def in_storage_order(refs: Iterable[Ref]) -> list[Ref]:
    """As they lie in the store, so that each part of it is read once."""
    return sorted(refs, key=lambda ref: (ref.segment, ref.at or ()))


def groups_of(step: Step, ledger: Ledger, refs: Iterable[Ref]) -> Iterator[tuple[str, list[Ref]]]:
    """Every group of a group stage with its members, sorted by id; one after the other, sorted by name."""
    assert isinstance(step.stage, GroupStage)
    spool = Spool(ledger)
    for page in in_pages(refs, PAGE):
        records = ledger.fetch(step.name, [ref.id for ref in page])
        for ref in page:
            record = records.get(ref.id)
            if record is not None and holds(record, step.key, ref):
                spool.add(ref, record.group)
            else:
                spool.add(ref, step.stage.group(ledger.load(ref, arrays=())))
    return spool.groups()


class Division:
    """The members of the groups of a stage, looked up as they come."""

    def __init__(self, step: Step, ledger: Ledger) -> None:
        self._step, self._ledger = step, ledger
        self._came, self._members = Spool(ledger), Spool(ledger)
        self._page: list[Ref] = []

    def add(self, ref: Ref) -> None:
        """One more."""
        self._page.append(ref)
        if len(self._page) == PAGE:
            self._look_up()

    def _look_up(self) -> None:
        step, page, self._page = self._step, self._page, []
        assert isinstance(step.stage, GroupStage)
        records = self._ledger.fetch(step.name, [ref.id for ref in page])
        for ref in page:
            record = records.get(ref.id)
            if record is None or not holds(record, step.key, ref):
                self._members.add(ref, step.stage.group(self._ledger.load(ref, arrays=())))
                continue
            self._members.add(ref, record.group, "" if record.again else record.members)
            for out in self._ledger.outputs(record):
                self._came.add(out, record.group)

    def end(self) -> tuple[Spool, Spool]:
        """(what came out of the groups that are done with exactly these members, members of the others)."""
        self._look_up()
        done = self._members.marked()
        self._came.keep(done)
        self._members.drop(done)
        return self._came, self._members
