"""What the report says about clips: figures of those that were kept, contact sheets of them and of the
rejected ones."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.storage import Storage
from pipelines import svg
from pipelines.groups import group_outputs, groups_of
from pipelines.ledger import Ledger, LostSegmentError, Record, Ref
from pipelines.listing import listed
from pipelines.policy import Policy
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage
from stages.clip import Clip
from stages.takedown import TAKEN_DOWN

FIGURE_CLIPS = 2000  # histograms read this many clips at most
KEPT_SHOWN = 16
REJECTED_SHOWN = 4  # clips per stage and reason
REASONS_SHOWN = 24
ALIGNED_FIELDS = ("yaw", "pitch", "roll")


@dataclass
class Sheet:
    """Clips that one stage rejected for one reason."""

    stage: str
    reason: str
    state: str
    count: int = 0
    clips: list[tuple[Clip, str]] = field(default_factory=list)  # with the detail


@dataclass
class Walk:
    """Where the clips of a run went, as the ledger has it for the settings of now."""

    kept: list[Ref] = field(default_factory=list)  # out of the last stage
    posed: list[Ref] = field(default_factory=list)  # out of the stage that writes cameras
    sheets: list[Sheet] = field(default_factory=list)


def walk(workflow: Workflow, store: Storage) -> tuple[Walk, Ledger]:
    """Follow every listed video through the current records."""
    ledger, found = Ledger(store), Walk()
    sheets: dict[tuple[str, str], Sheet] = {}
    policy = Policy(workflow, store)
    refs = list(listed(workflow, store, policy))
    for step in workflow.steps:
        after: list[Ref] = []
        for ref, record in _current(step, ledger, policy, policy.divide(refs, ledger)[0]):
            _collect(ledger, sheets, step, ref, record)
            after += ledger.outputs(record)
        refs = after
        if "cameras" in step.stage.writes:
            found.posed = after
    found.kept = policy.divide(refs, ledger)[0]
    found.sheets = sorted(sheets.values(), key=lambda s: -s.count)[:REASONS_SHOWN]
    return found, ledger


def _current(step: Step, ledger: Ledger, policy: Policy, refs: list[Ref]) -> list[tuple[Ref, Record]]:
    """The units whose record holds now; of a group stage, those of groups that are done."""
    if isinstance(step.stage, GroupStage):
        groups = groups_of(step, ledger, refs).values()
        refs = [
            ref for members in groups if group_outputs(step, ledger, members) is not None for ref in members
        ]
    pairs = [policy.current(ledger, step, ref) for ref in refs]
    return [(ref, record) for ref, record in pairs if record is not None]


def _collect(
    ledger: Ledger, sheets: dict[tuple[str, str], Sheet], step: Step, ref: Ref, record: Record
) -> None:
    """Count what the stage did not pass on; hold the first few clips of each reason."""
    ended: list[tuple[Ref, str, str, str]] = []
    if not record.outputs:  # else its rejected pieces tell the same
        ended.append((ref, record.state, record.reason, record.detail))
    for number, out in enumerate(record.outputs):
        if out.state != "ok":
            at = Ref(out.id, out.digest, record.source, out.identity, record.segment, record.row + number)
            ended.append((at, out.state, out.reason, out.detail))
    for clip_ref, state, reason, detail in ended:
        sheet = sheets.setdefault((step.name, reason), Sheet(step.name, reason, state))
        sheet.count += 1
        if len(sheet.clips) < REJECTED_SHOWN and reason != TAKEN_DOWN:  # whose pictures nobody may see
            clip = load(ledger, clip_ref)
            if clip is not None:
                sheet.clips.append((clip, detail))


def load(ledger: Ledger, ref: Ref) -> Clip | None:
    """None when the store cannot give the clip back; the next run does it again."""
    try:
        return ledger.load(ref)
    except LostSegmentError:
        return None


def sampled(refs: list[Ref], count: int) -> list[Ref]:
    """At most `count`, chosen by a hash of the id, so that a report of the same run shows the same ones."""
    chosen = sorted(refs, key=lambda r: hashlib.sha256(r.id.encode()).digest())[:count]
    return sorted(chosen, key=lambda r: r.id)


def clips_of(ledger: Ledger, refs: Iterable[Ref]) -> list[Clip]:
    return [clip for clip in (load(ledger, ref) for ref in refs) if clip is not None]


# --- figures ---------------------------------------------------------------------------------------------


def figures(clips: list[Clip]) -> list[dict[str, Any]]:
    """Histograms over the kept clips: angles, size, length, clips per person."""
    angles = _angles(clips)
    made = [
        _figure(name.capitalize(), angles[name], low=-reach, high=reach, unit="°")
        for name, reach in (("yaw", 60), ("pitch", 40), ("roll", 40))
        if len(angles[name])
    ]
    boxes = [clip.face_boxes for clip in clips if clip.face_boxes is not None]
    sizes = np.concatenate([box[:, 3] - box[:, 1] for box in boxes]) if boxes else np.zeros(0)
    if len(sizes):
        made.append(
            _figure("Face height in the source", sizes, low=0, high=_round_up(sizes.max()), unit="px")
        )
    lengths = [clip.frame_count / clip.fps for clip in clips if clip.is_cut and clip.fps]
    if lengths:
        top = _round_up(max(lengths))
        made.append(_figure("Length", lengths, low=0, high=top, unit="s", what="clips", digits=2))
    people = Counter(Counter(clip.identity for clip in clips if clip.identity).values())
    if people:
        drawn = svg.bars(
            [(str(n), people[n]) for n in range(1, max(people) + 1)], unit="clips", what="people"
        )
        caption = f"{people.total()} people, {sum(n * many for n, many in people.items())} clips"
        made.append({"title": "Clips per person", "svg": drawn, "caption": caption})
    return made


def _angles(clips: list[Clip]) -> dict[str, Any]:
    from stages.cameras import euler_degrees

    cameras = [clip.cameras for clip in clips if clip.cameras is not None]
    if not cameras:
        return dict.fromkeys(ALIGNED_FIELDS, ())
    return dict(zip(ALIGNED_FIELDS, euler_degrees(np.concatenate(cameras)), strict=True))


def _figure(
    title: str, values: Any, *, low: float, high: float, unit: str, what: str = "frames", digits: int = 1
) -> dict[str, Any]:
    numbers = np.asarray(values, np.float64)
    low_5, middle, high_5 = np.percentile(numbers, [5, 50, 95])
    suffix = unit if unit == "°" else f" {unit}"
    caption = (
        f"median {middle:.{digits}f}{suffix}, 5 to 95 %: {low_5:.{digits}f} to {high_5:.{digits}f}{suffix}"
    )
    return {
        "title": title,
        "svg": svg.histogram(numbers, low=low, high=high, unit=unit, what=what),
        "caption": caption,
    }


def _round_up(value: float) -> float:
    """To the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(step * power for step in (1, 2, 5, 10) if value <= step * power))


# --- contact sheets --------------------------------------------------------------------------------------


def kept_rows(
    store: Storage, clips: list[Clip], strip: Callable[[Storage, Clip], str]
) -> list[dict[str, str]]:
    """One row per kept clip, people together."""
    rows = []
    for clip in sorted(clips, key=lambda c: (c.identity, c.id)):
        parts = [
            clip.identity,
            f"{clip.frame_count} frames",
            f"{clip.frame_count / clip.fps:.1f} s" if clip.fps else "",
        ]
        if clip.cameras is not None:
            yaw = _angles([clip])["yaw"]
            parts.append(f"yaw {yaw.min():z.0f}° to {yaw.max():z.0f}°")
        rows.append({"id": clip.id, "strip": strip(store, clip), "text": " · ".join(p for p in parts if p)})
    return rows


def rejected_sheets(
    store: Storage, sheets: list[Sheet], strip: Callable[[Storage, Clip], str]
) -> list[dict[str, Any]]:
    made = []
    for sheet in sheets:
        rows = [{"id": clip.id, "strip": strip(store, clip), "text": detail} for clip, detail in sheet.clips]
        count = f"{sheet.count} clip{'s' if sheet.count != 1 else ''} {sheet.state}"
        made.append({"reason": sheet.reason, "stage": sheet.stage, "count": count, "clips": rows})
    return made


def pose_rows(store: Storage, clips: list[Clip]) -> list[dict[str, str]]:
    """Camera errors of the clips whose true cameras are known; the last row is their mean."""
    from stages.sources.portraits import pose_errors

    found: dict[str, dict[str, float]] = {}
    for clip in clips:
        errors = pose_errors(store, clip)
        if errors is not None:
            found[clip.id] = errors
    if not found:
        return []
    columns = defaultdict(list)
    for errors in found.values():
        for name, value in errors.items():
            columns[name].append(value)
    found["mean"] = {name: float(np.mean(values)) for name, values in columns.items()}
    return [
        {"id": name, **{key: f"{value:.2f}" for key, value in errors.items()}}
        for name, errors in found.items()
    ]
