"""TalkingHead-1KH: tubes, which are boxes over frames of one-minute chunks of YouTube videos.

Videos: CC BY 3.0; list: MIT. Wang et al., CVPR 2021. A chunk is what ffmpeg's segmenter makes of a stream
copy, so it starts at a key frame of the encoding that one happens to get. Hence the stage `LocateChunks`:
it finds the chunks after the download, and makes sure that there is a face in the box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages import backends
from stages.base import Drop, Rejected, Source, Stage
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span, span_clip

LICENCE = "CC BY 3.0"
CHUNK_S = 60.0
PARTS = ("train", "val", "small")
MOST_LOOKS = 1000                # at a part, and to either side of it
_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{4})")


@dataclass
class TalkingHead(Source):
    """`<part>_video_tubes.txt` in a folder, and `<part>_video_ids.txt` beside it where it is there."""

    location: str                            # the folder of the unpacked data_list.zip
    part: str = "train"                      # train, val or small

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part: {self.part!r}; choose from {', '.join(PARTS)}")

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per video, its parts the tubes. Raises ValueError when there is no such file."""
        path = Path(self.location, f"{self.part}_video_tubes.txt")
        videos: dict[str, list[bytes]] = {}              # parts as json: half a million as objects are large
        for line, text in lists.lines_of(path):
            try:
                video_id, span = read_tube(text)
            except Drop as drop:
                detail = f"{path.name}:{line}: {drop.detail}"
                yield lists.error_unit("talkinghead", f"line-{line}", text[:80], drop.reason, detail)
            else:
                span["split"] = "test" if self.part == "val" else "train"
                videos.setdefault(video_id, []).append(json.dumps(span, separators=(",", ":")).encode())
        if not videos:
            raise ValueError(f"{path}:1: holds no tube 'name, H, W, S, E, L, T, R, B'; give data_list's file")
        for video_id, parts in videos.items():
            url, spans = lists.youtube_url(video_id), [json.loads(part) for part in parts]
            yield lists.unit("talkinghead", video_id, url, spans, LICENCE)
        yield from self._without_tubes(set(videos))

    def _without_tubes(self, known: set[str]) -> Iterator[Clip]:
        path = Path(self.location, f"{self.part}_video_ids.txt")
        for line, video_id in lists.lines_of(path) if path.exists() else ():
            if video_id not in known:
                known.add(video_id)
                detail = f"{path.name}:{line}: no tube names it"
                yield lists.error_unit("talkinghead", f"id-{video_id}", video_id, "nothing wanted", detail)


def read_tube(text: str) -> tuple[str, Span]:
    """(video id, part) of a row `name, H, W, S, E, L, T, R, B`. Raises Drop."""
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 9:
        raise Drop("bad row", f"{len(fields)} fields, 9 are needed")
    # Ids hold "_" and "-" themselves: the chunk is the last five characters of the name.
    name = _NAME.fullmatch(fields[0])
    if name is None:
        raise Drop("bad row", f"{fields[0][:40]!r} is no name <id>_<4 digits>")
    numbers = [int(lists.number(value, "a field")) for value in fields[1:]]
    height, width, first, last, left, top, right, bottom = numbers
    if min(height, width) <= 0 or not 0 <= first <= last:
        raise Drop("bad row", f"size {width}x{height}, frames {first} to {last}")
    box = lists.checked_box([left / width, top / height, right / width, bottom / height])
    return name[1], {
        "key": f"{name[2]}_S{first}_E{last}_L{left}_T{top}_R{right}_B{bottom}",
        "chunk": int(name[2]), "frames": [first, last + 1],                      # the listed end is included
        "boxes": [[0.0, *box]], "box_unit": "frame", "box_kind": "tube", "row_sha1": lists.row_sha1(text),
        "row": {"height": height, "width": width},
    }


def chunk_starts(key_times_s: Sequence[float], chunk_s: float = CHUNK_S) -> list[float]:
    """Start of every chunk that `ffmpeg -c copy -f segment -segment_time <chunk_s>` cuts, s.

    `key_times_s`: presentation times of the key frames, ascending, the first of which starts the file. Chunk
    k + 1 starts with the first key frame at or after (k + 1) * chunk_s that comes after the start of chunk k:
    a long gap between key frames makes one chunk long, and the next one short.
    """
    starts: list[float] = []
    for time in key_times_s:
        if not starts or time - key_times_s[0] >= chunk_s * len(starts) - 5e-7:
            starts.append(time)
    return starts


@dataclass
class LocateChunks(Stage):
    """Give parts that are frames of a chunk their seconds, where a face is in their box.

    A part whose box shows no face at the place that the key frames tell is looked for within `search_s`,
    nearest first; the shift is kept as `chunk_shift_s` in the part. Parts that are not found are rejected.
    Other videos pass unchanged. Comes after the download.
    """

    backend: str = "stages.backends.dlib:DlibFaces"      # empty: believe the key frames
    search_s: float = 2.0
    step_s: float = 0.25
    looks: int = 5                           # frames of a part that are looked at
    faces_needed: float = 0.6                # of the looks

    name: ClassVar[str] = "LocateChunks"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("listed",)

    def __post_init__(self) -> None:
        if self.step_s <= 0 or not 1 <= self.looks <= MOST_LOOKS:
            raise ValueError(
                f"step_s: {self.step_s} must be positive, and looks {self.looks} 1 to {MOST_LOOKS}"
            )
        if not 0 <= self.search_s / self.step_s <= MOST_LOOKS:
            raise ValueError(f"search_s: {self.search_s} is not 0 to {MOST_LOOKS} steps of {self.step_s} s")

    def setup(self, store: Storage) -> None:
        self._store = store
        self._faces: Any = backends.load(self.backend, needs=("detect",)) if self.backend else None

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        from stages import video

        spans = clip.listed.get("spans", [])
        if not any("chunk" in span and "start_s" not in span for span in spans):
            yield clip
            return
        located: list[Span] = []
        with video.resolve(self._store, clip.video) as path:
            times, starts = video.frame_times(path), chunk_starts(key_times(path))
            info = video.probe(path)
            for span in spans:
                found = span
                if "chunk" in span and "start_s" not in span:
                    try:
                        found = self._search(path, nominal(span, times, starts), info.width, info.height)
                    except Drop as drop:
                        yield Rejected(span_clip(clip, span), drop.reason, drop.detail)
                        continue
                located.append(found)
        if located:
            yield clip.copy(listed={**clip.listed, "spans": located})

    def _search(self, path: Path, span: Span, width: int, height: int) -> Span:
        if self._faces is None:
            return span
        box = lists.box_at(span, span["start_s"], width, height)
        steps = round(self.search_s / self.step_s)
        shifts = sorted((n * self.step_s for n in range(-steps, steps + 1)), key=lambda s: (abs(s), s))
        first, length = span["start_s"], span["end_s"] - span["start_s"]
        offsets = (np.arange(self.looks) + 0.5) / self.looks * length
        if box is None or self._share(path, first + offsets, box) >= self.faces_needed:
            return span
        for shift in shifts[1:]:
            times = first + shift + offsets
            if times[0] >= 0 and self._share(path, times, box) >= self.faces_needed:
                start = first + shift
                return {**span, "start_s": start, "end_s": start + length, "chunk_shift_s": shift}
        raise Drop("no face in the listed box", f"within {self.search_s:g} s of {first:.2f} s")

    def _share(self, path: Path, times_s: NDArray[np.float64], box: lists.Box) -> float:
        """Share of the frames at `times_s` that show a face in `box`; 0 where the file has none."""
        from stages import video

        try:
            frames = list(video.read_frames(path, list(times_s)))
        except Drop:
            return 0.0
        return float(np.mean([self._holds_face(frame, box) for frame in frames]))

    def _holds_face(self, frame: NDArray[np.uint8], box: lists.Box) -> bool:
        left, top, right, bottom = box
        # A tube is the face with half its size around it: anything smaller is somebody in the background.
        x0, y0 = max(round(left), 0), max(round(top), 0)
        crop = np.ascontiguousarray(frame[y0:round(bottom), x0:round(right)])
        if min(crop.shape[:2]) < 16:
            return False
        found = [d for d in self._faces.detect(crop) if d.score >= self._faces.believe_above]
        sides = [d.box[3] - d.box[1] for d in found]
        return max(sides, default=0.0) > 0.25 * (bottom - top)


def nominal(span: Span, times_s: NDArray[np.float64], starts_s: Sequence[float]) -> Span:
    """The part with the seconds that its chunk and frames mean in this file. Raises Drop when it has none."""
    first, end = span["frames"]
    if span["chunk"] >= len(starts_s):
        raise Drop("chunk missing", f"chunk {span['chunk']} of {len(starts_s)}: the video is shorter now")
    at = int(np.searchsorted(times_s, starts_s[span["chunk"]] - 1e-4))
    if at + end > len(times_s):
        raise Drop("chunk missing", f"frame {end - 1} of chunk {span['chunk']}: the video is shorter now")
    step = float(np.median(np.diff(times_s)))
    return {**span, "start_s": float(times_s[at + first]), "end_s": float(times_s[at + end - 1]) + step}


def key_times(path: Path) -> list[float]:
    """Presentation times of the key frames of a file, s, ascending; decodes nothing. Raises DecodeError."""
    import av

    from stages.video import DecodeError

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            packets = (p for p in container.demux(stream) if p.is_keyframe and p.pts is not None)
            return sorted(float(p.pts * stream.time_base) for p in packets)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DecodeError(str(error)) from None
