"""Histograms of the report: what the kept clips look like, with the thresholds of the stages drawn in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines import svg
from pipelines.ledger import Ledger, LostSegmentError, Ref
from pipelines.report_walk import Walk
from pipelines.workflow import Workflow
from stages.clip import Clip

Numbers = NDArray[np.float64]

READ = ("frame_times_s", "face_boxes", "cameras")  # of a kept clip; the rest of its arrays stays unread
ANGLES = ("yaw", "pitch", "roll")
REACH = {"yaw": 60.0, "pitch": 40.0, "roll": 40.0}  # degrees, at least


@dataclass
class Seen:
    """The numbers of a sample of kept clips."""

    clips: int = 0
    angles: dict[str, list[Numbers]] = field(default_factory=lambda: {name: [] for name in ANGLES})  # degrees
    sides: list[Numbers] = field(default_factory=list)  # px in the source, per frame
    frames: list[int] = field(default_factory=list)  # per clip
    lengths_s: list[float] = field(default_factory=list)
    rates: Counter[str] = field(default_factory=Counter)  # output frames per second
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # source -> px
    files: dict[str, str] = field(default_factory=dict)  # source -> Clip.video
    scores: list[float] = field(default_factory=list)  # see `score`
    model: dict[str, Any] = field(default_factory=dict)  # of the similarities
    extremes: dict[str, tuple[float, Ref, int]] = field(default_factory=dict)  # what -> value, clip, frame


def load(ledger: Ledger, ref: Ref, arrays: Sequence[str] | None = None) -> Clip | None:
    """None when the store cannot give the clip back; the next run does it again."""
    try:
        return ledger.load(ref, arrays)
    except LostSegmentError:
        return None


def measure(ledger: Ledger, refs: list[Ref], aggregate: str, tick: Callable[[], None]) -> Seen:
    """Read what the histograms show; one clip is in memory at a time."""
    seen = Seen()
    for ref in refs:
        clip = load(ledger, ref, READ)
        tick()
        if clip is None or not clip.is_cut:
            continue
        seen.clips += 1
        seen.frames.append(clip.frame_count)
        if clip.fps:
            seen.lengths_s.append(clip.frame_count / clip.fps)
            seen.rates[f"{clip.fps:g}"] += 1
        if clip.width and clip.height:
            seen.sizes[clip.source] = (clip.width, clip.height)
            seen.files[clip.source] = clip.video
        if clip.padded_fraction:
            _extreme(seen, "most made up", clip.padded_fraction, ref, clip.frame_count // 2)
        _faces(seen, ref, clip)
        _angles(seen, ref, clip)
        if clip.verification:
            seen.scores.append(score(clip, aggregate))
            seen.model = clip.embedding_model
    return seen


def _faces(seen: Seen, ref: Ref, clip: Clip) -> None:
    if clip.face_boxes is None:
        return
    width, height = (clip.face_boxes[:, 2:] - clip.face_boxes[:, :2]).astype(np.float64).T
    side = np.sqrt(np.maximum(width * height, 0))
    seen.sides.append(side)
    _extreme(seen, "smallest face", -float(side.min()), ref, int(side.argmin()))


def _angles(seen: Seen, ref: Ref, clip: Clip) -> None:
    from stages.cameras import euler_degrees

    if clip.cameras is None or not len(clip.cameras):
        return
    angles = dict(zip(ANGLES, euler_degrees(clip.cameras), strict=True))
    for name, values in angles.items():
        seen.angles[name].append(np.asarray(values, np.float64))
        at = int(np.abs(values).argmax())
        _extreme(seen, f"largest {name}", float(abs(values[at])), ref, at)
    if clip.frame_count > 2:
        jerk = np.linalg.norm(np.diff(np.stack(list(angles.values())), 2, axis=1), axis=0)
        _extreme(seen, "least steady", float(np.sqrt((jerk**2).mean())), ref, int(jerk.argmax()) + 1)


def _extreme(seen: Seen, what: str, value: float, ref: Ref, frame: int) -> None:
    if what not in seen.extremes or value > seen.extremes[what][0]:
        seen.extremes[what] = (value, ref, frame)


def score(clip: Clip, aggregate: str) -> float:
    """The least similarity of a frame to the others, as `VerifyIdentity` judges it."""
    names = {"mean": ("lowest",), "median": ("lowest_median",)}.get(aggregate, ("lowest", "lowest_median"))
    return min(float(clip.verification.get(name, 1.0)) for name in names)


# --- figures -----------------------------------------------------------------------------------------------


def figures(workflow: Workflow, seen: Seen, found: Walk, rejected: list[float]) -> list[dict[str, Any]]:
    """All that there is something to show of: {"title", "svg", "caption"} each."""
    made = []
    for name in ANGLES:
        if seen.angles[name]:
            values = np.concatenate(seen.angles[name])
            reach = max(REACH[name], float(np.ceil(np.abs(values).max() / 10) * 10))
            made.append(_figure(name.capitalize(), values, low=-reach, high=reach, unit="°", what="frames"))
    if seen.sides:
        values = np.concatenate(seen.sides)
        limit = setting(workflow, "minimum_face_px")
        high = _round_up(max(float(values.max()), limit or 0))
        made.append(
            _figure(
                "Face size in the source",
                values,
                0,
                high,
                "px",
                "frames",
                limit=limit,
                name="side of the box",
            )
        )
    if seen.frames:
        limit = setting(workflow, "minimum_frames")
        made.append(
            _figure(
                "Clip length in frames",
                seen.frames,
                0,
                _round_up(max(seen.frames)),
                "",
                "clips",
                limit=limit,
                name="frames",
            )
        )
    if seen.lengths_s:
        made.append(
            _figure(
                "Clip length in seconds",
                seen.lengths_s,
                0,
                _round_up(max(seen.lengths_s)),
                "s",
                "clips",
                digits=2,
                name="length",
            )
        )
    made += [*_people(found), *_similarity(workflow, seen, rejected)]
    return made


def _people(found: Walk) -> Iterator[dict[str, Any]]:
    sizes = Counter(found.people.values())
    if not sizes:
        return
    most = max(sizes)
    caption = (
        f"{many(sizes.total(), 'person', 'people')}, {many(found.people.total(), 'clip')}; "
        f"median {np.median(list(found.people.values())):g} per person, at most {most}"
    )
    what, name, label = "people", "clips of a person", f"Clips per person: {caption}"
    if most <= svg.BARS_SHOWN:
        counts = [(str(n), sizes[n]) for n in range(1, most + 1)]
        drawn = svg.bars(counts, what=what, name=name, label=label)
    else:
        sizes_of, high = list(found.people.values()), _round_up(most)
        drawn = svg.histogram(sizes_of, low=0, high=high, what=what, name=name, label=label)
    yield {"title": "Clips per person", "svg": drawn, "caption": caption}


def _similarity(workflow: Workflow, seen: Seen, rejected: list[float]) -> Iterator[dict[str, Any]]:
    from stages.backends import IdentityModel

    if not seen.scores and not rejected:
        return
    limit, what = None, "similarity"
    if seen.model:
        model = IdentityModel(**seen.model)
        limit = setting(workflow, "same_person")
        limit = model.same_person if limit is None else limit
        what = "cosine"
        if model.metric == "euclidean":  # whose similarity is a vote
            limit, what = 0.5, f"share of frames within {limit:g}"
    low = min([0.0, *seen.scores, *rejected])
    figure = _figure(
        "Least alike frame of a clip", seen.scores or rejected, low, 1.0, "", "clips", digits=2,
        limit=limit, name=what, rejected=rejected if seen.scores else (),
    )  # fmt: skip
    allowed = setting(workflow, "maximum_noisy_frames")
    if rejected:
        figure["caption"] += f"; orange: {many(len(rejected), 'clip')} rejected for it"
    if allowed is not None:
        figure["caption"] += f". A clip may have {allowed:g} frames below the limit"
    yield figure


def _figure(
    title: str, values: Any, low: float, high: float, unit: str, what: str, *, digits: int = 1,
    limit: float | None = None, name: str = "", rejected: Any = (),
) -> dict[str, Any]:  # fmt: skip
    numbers = np.asarray(values, np.float64)
    suffix = unit if unit == "°" else f" {unit}" if unit else ""
    first, middle, last = (f"{value:z.{digits}f}" for value in np.percentile(numbers, [5, 50, 95]))
    caption = f"median {middle}{suffix}, 5 to 95 %: {first} to {last}{suffix}"
    if limit is not None:
        caption += f"; limit {limit:g}{suffix}"
    marks: list[svg.Mark] = [(float(np.median(numbers)), "", "median")]
    marks += (
        [(float(limit), f"limit {limit:g}", "limit")] if limit is not None and low <= limit <= high else []
    )
    drawn: Markup = svg.histogram(
        numbers, low=low, high=high, unit=unit, what=what, name=name or title.lower(), marks=marks,
        rejected=rejected, label=f"{title}: {caption}",
    )  # fmt: skip
    return {"title": title, "svg": drawn, "caption": caption}


def setting(workflow: Workflow, name: str) -> float | None:
    """The first number that a stage of the workflow has under this name."""
    found = (step.settings.get(name) for step in workflow.steps)
    return next((float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)), None)


def _round_up(value: float) -> float:
    """To the next 1, 1.5, 2, 3, 5 or 8 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(step * power for step in (1, 1.5, 2, 3, 5, 8, 10) if value <= step * power))


def many(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def rejected_scores(ledger: Ledger, refs: list[Ref], aggregate: str) -> list[float]:
    """The scores of clips that were rejected for them."""
    clips = (load(ledger, ref, ()) for ref in refs)
    return [score(clip, aggregate) for clip in clips if clip is not None and clip.verification]


def aggregate_of(workflow: Workflow) -> str:
    """How the workflow judges similarities."""
    return next((str(s.settings["aggregate"]) for s in workflow.steps if "aggregate" in s.settings), "either")
