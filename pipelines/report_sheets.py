"""Contact sheets of the report: clips that were kept, clips that were not and why, cameras over frames."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.storage import Storage
from pipelines.contact import Look, Picture, aligned_frames, data_uri, look, moment, sheet
from pipelines.ledger import Ledger, Ref
from pipelines.policy import Policy
from pipelines.report_figures import ANGLES, Seen, load
from pipelines.report_walk import Tally, Walk
from stages.clip import Clip

KEPT_SHOWN = 24
SHEETS_SHOWN = 8  # reasons of a stage
POSED_SHOWN = 4  # clips beside the extremes
TRUE_SHOWN = 32  # clips whose cameras are compared with true ones
POSE_SIDE = 288  # px
PICTURE_BYTES = 10 << 20  # of all pictures of a page
PICTURE_SECONDS = 600.0


@dataclass
class Album:
    """Makes the pictures of a page, as many as it may hold and as there is time for."""

    store: Storage
    most_bytes: int
    most_seconds: float
    tick: Callable[[], None] = lambda: None
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # why -> how many
    _begun: float = field(default_factory=time.monotonic)

    def add(self, make: Callable[[], Look]) -> dict[str, Any]:
        """{"src", "width", "height", "note"}; src is "" where there is no picture, and note says why."""
        self.tick()
        why = self._full()
        if why:
            self.left_out[why] += 1
            return {"src": "", "width": 0, "height": 0, "note": f"picture left out: {why}"}
        found = make()
        if not found.pictures:
            return {"src": "", "width": 0, "height": 0, "note": found.note}
        whole = sheet(found)
        src = data_uri(whole)
        self.bytes += len(src)
        return {"src": src, "width": whole.shape[1], "height": whole.shape[0], "note": found.note}

    def _full(self) -> str:
        if self.bytes >= self.most_bytes:
            return f"the page holds {self.most_bytes >> 20} MB of pictures at most"
        if time.monotonic() - self._begun >= self.most_seconds:
            return f"pictures may take {self.most_seconds / 60:.0f} minutes at most"
        return ""

    @property
    def text(self) -> str:
        """What is not shown."""
        return "; ".join(f"{count:,} pictures left out: {why}" for why, count in self.left_out.items())


def kept_rows(album: Album, ledger: Ledger, refs: list[Ref]) -> list[dict[str, Any]]:
    """Kept clips with a picture, people together."""
    made = []
    for ref in sorted(refs, key=lambda ref: (ref.identity, ref.id)):
        clip = load(ledger, ref)
        if clip is None:
            continue
        parts = [clip.identity, _length(clip)]
        if clip.cameras is not None and len(clip.cameras):
            from stages.cameras import euler_degrees

            yaw = euler_degrees(clip.cameras)[0]
            parts.append(f"yaw {yaw.min():z.0f}° to {yaw.max():z.0f}°")
        made.append({
            "id": clip.id, "source": clip.source, "text": " · ".join(part for part in parts if part),
            "picture": album.add(lambda: look(album.store, clip)),                     # noqa: B023
        })  # fmt: skip
    return made


def _length(clip: Clip) -> str:
    if not clip.is_cut:
        return "whole video"
    seconds = f", {clip.frame_count / clip.fps:.1f} s" if clip.fps else ""
    return f"{clip.frame_count} {'frame' if clip.frame_count == 1 else 'frames'}{seconds}"


def rejected_sheets(album: Album, ledger: Ledger, policy: Policy, found: Walk) -> list[dict[str, Any]]:
    """Per stage, in its order, the reasons by count, each with a sample of its clips."""
    stages = [_stage(album, ledger, policy, tally) for tally in found.tallies if tally.sheets]
    return [stage for stage in stages if stage["sheets"]]


def pictures_of(found: Walk) -> int:
    """How many pictures `rejected_sheets` will ask for."""
    return sum(
        len(sheet.chosen.items()) for tally in found.tallies for sheet in tally.by_count()[:SHEETS_SHOWN]
    )


def _stage(album: Album, ledger: Ledger, policy: Policy, tally: Tally) -> dict[str, Any]:
    ordered = tally.by_count()
    sheets = []
    for one in ordered[:SHEETS_SHOWN]:
        rows = []
        for ref, detail in one.chosen.items():
            clip = load(ledger, ref)
            if clip is None or policy.stops(ref, ledger):  # of whom nobody may see a picture
                continue
            at = moment(clip, detail, "verification" in tally.step.stage.writes)
            picture = album.add(lambda: look(album.store, clip, at))  # noqa: B023
            rows.append({
                "id": clip.id, "source": clip.source, "picture": picture,
                "text": " · ".join(part for part in (detail, _length(clip)) if part),
            })  # fmt: skip
        sheets.append({
            "reason": one.reason or one.state, "state": one.state, "count": one.count, "clips": rows,
        })  # fmt: skip
    more = sum(s.count for s in ordered[SHEETS_SHOWN:])
    return {
        "name": tally.step.name, "lost": tally.lost, "sheets": sheets, "more": more,
        "more_reasons": len(ordered) - len(sheets),
    }  # fmt: skip


# --- cameras -----------------------------------------------------------------------------------------------


def posed(seen: Seen, refs: list[Ref]) -> list[tuple[Ref, int, list[str]]]:
    """(clip, frame, why it is shown): the extremes of the sample, then others of it; frame -1 is any."""
    wanted: dict[str, tuple[Ref, int, list[str]]] = {}
    for what, (value, ref, frame) in seen.extremes.items():
        wanted.setdefault(ref.id, (ref, frame, []))[2].append(_said(what, value))
    others = [ref for ref in refs if ref.id not in wanted][:POSED_SHOWN]
    return [*wanted.values(), *((ref, -1, ["chosen at random"]) for ref in others)]


def posed_rows(
    album: Album, ledger: Ledger, wanted: list[tuple[Ref, int, list[str]]]
) -> list[dict[str, Any]]:
    """Frames with what their cameras say drawn over them."""
    made = []
    for ref, frame, said in wanted:
        clip = load(ledger, ref)
        if clip is None or clip.cameras is None or not clip.aligned:
            album.tick()
            continue
        at = frame if frame >= 0 else clip.frame_count // 2
        picture = album.add(lambda: _posed(album.store, clip, at))  # noqa: B023
        made.append({"id": clip.id, "why": ", ".join(said), "text": _pose(clip, at), "picture": picture})
    return made


def _said(what: str, value: float) -> str:
    if what == "least steady":
        return f"{what} ({value:.2f}°/frame², rms)"
    if what == "smallest face":
        return f"{what} ({-value:.0f} px)"
    if what == "most made up":
        return f"{what} beyond the frame's edge ({value:.0%})"
    return f"{what} ({value:.0f}°)"


def _pose(clip: Clip, frame: int) -> str:
    from stages.cameras import euler_degrees

    assert clip.cameras is not None
    angles = zip(ANGLES, euler_degrees(clip.cameras[frame : frame + 1]), strict=True)
    at = f" at {frame / clip.fps:.2f} s" if clip.fps else ""
    said = ", ".join(f"{name} {float(value[0]):z.0f}°" for name, value in angles)
    return f"left, frame {frame}{at}: {said}"


def _posed(store: Storage, clip: Clip, frame: int) -> Look:
    """The frame, and the one half a clip away."""
    import tarfile

    import cv2

    from pipelines.overlay_video import draw
    from stages.affine import apply

    assert clip.cameras is not None
    indices = sorted({frame, (frame + clip.frame_count // 2) % clip.frame_count}, key=lambda i: i != frame)
    try:
        frames = aligned_frames(store, clip, indices)
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        return Look(note=f"no picture: the aligned frames cannot be read ({type(error).__name__})")
    pictures: list[Picture] = []
    for index, picture in zip(indices, frames, strict=True):
        points = None
        if clip.landmarks is not None and clip.crop_transforms is not None:
            points = apply(clip.crop_transforms[index : index + 1], clip.landmarks[index : index + 1])[0]
        drawn = draw(picture, clip.cameras[index], points, with_text=False)
        small = cv2.resize(drawn, (POSE_SIDE, POSE_SIDE), interpolation=cv2.INTER_AREA)
        pictures.append(np.asarray(small, np.uint8))
    return Look(pictures)


def pose_rows(store: Storage, ledger: Ledger, found: Walk) -> list[dict[str, str]]:
    """Camera errors of clips whose true cameras are known; the last row is their mean."""
    from stages.sources.portraits import pose_errors

    posed = [tally.passed for tally in found.tallies if "cameras" in tally.step.stage.writes]
    errors_of: dict[str, dict[str, float]] = {}
    for ref in posed[-1].items()[:TRUE_SHOWN] if posed else ():
        clip = load(ledger, ref)
        errors = pose_errors(store, clip) if clip is not None else None
        if errors is not None:
            errors_of[ref.id] = errors
    if not errors_of:
        return []
    names = list(next(iter(errors_of.values())))
    ordered = dict(sorted(errors_of.items()))
    ordered["mean"] = {name: float(np.mean([e[name] for e in errors_of.values()])) for name in names}
    return [
        {"id": unit, **{key: f"{value:.2f}" for key, value in errors.items()}}
        for unit, errors in ordered.items()
    ]
