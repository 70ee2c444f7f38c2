"""What a group stage gets and gives: whole clips, or light ones where a group is large (`whole_clips`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from pipelines.ledger import Ledger, Ref, members_digest
from pipelines.pools import Work
from pipelines.work import Piece
from pipelines.workflow import Step
from stages.base import GroupStage, Stage
from stages.clip import Clip


def clips_of(work: Work, ledger: Ledger) -> list[Clip]:
    """The clips that a work's stages get, in the order of its refs. Raises LostSegmentError."""
    stage = work.pool.steps[0].stage
    found: dict[str, Clip] = {}
    for ref in in_storage_order(work.refs):
        clip = ledger.load(ref, stage.reads if is_light(stage) else None)
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
    """By segment and row, so that each segment is opened once."""
    return sorted(refs, key=lambda ref: (ref.segment, ref.row))


def groups_of(step: Step, ledger: Ledger, refs: Iterable[Ref]) -> dict[str, list[Ref]]:
    """Members of every group of a group stage, sorted by id."""
    assert isinstance(step.stage, GroupStage)
    groups: dict[str, list[Ref]] = {}
    for ref in refs:
        record = ledger.current(step.name, step.key, ref)
        group = record.group if record else step.stage.group(ledger.load(ref, arrays=()))
        groups.setdefault(group, []).append(ref)
    return {group: sorted(members, key=lambda ref: ref.id) for group, members in groups.items()}


def group_outputs(step: Step, ledger: Ledger, members: list[Ref]) -> list[Ref] | None:
    """What came out of a group, or None when it is not done with exactly these members."""
    digest = members_digest(members)
    outputs: list[Ref] = []
    for ref in members:
        record = ledger.current(step.name, step.key, ref)
        if record is None or record.members != digest:
            return None
        outputs.extend(ledger.outputs(record))
    return outputs
