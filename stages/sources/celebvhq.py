"""CelebV-HQ: `celebvhq_info.json`, 35,666 clips of 15,653 YouTube videos, no identity labels.

Licence: for non-commercial research, no redistribution. Zhu et al., ECCV 2022.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import Storage
from stages.base import Drop, Source
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span, error_unit, number, text_of, unit, youtube_url

LICENCE = "CelebV-HQ: non-commercial research, no redistribution"


@dataclass
class CelebVHQ(Source):
    """The json file of the data set. Attributes stay in the `row` of each part."""

    location: str                            # path of celebvhq_info.json

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per YouTube video. Raises ValueError naming file and line for what is not that json."""
        videos: dict[str, list[Span]] = {}
        for key, row in read_json(Path(self.location)).items():
            try:
                # The key is "<id>_<n>" or "<id>_<n>_<m>" and ids may hold "_": never split it.
                lists.check_kept({key: row})
                video_id = str(row["ytb_id"])
                youtube_url(video_id)
                span = _span(key, video_id, row)
                videos.setdefault(video_id, []).append(span)
            except Drop as drop:
                yield error_unit("celebvhq", f"row-{key}", key, drop.reason, drop.detail)
            except (KeyError, TypeError, ValueError) as error:
                detail = f"{key!r} lacks or misuses {error}"
                yield error_unit("celebvhq", f"row-{key}", key, "bad row", detail)
        for video_id, spans in videos.items():
            yield unit("celebvhq", video_id, youtube_url(video_id), spans, LICENCE)


def read_json(path: Path) -> dict[str, dict[str, Any]]:
    """The `clips` of the file, key to row. Raises ValueError naming file and line."""
    text = text_of(path)
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:        # of syntax, of numbers too long, of depth
        line, cause = getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise ValueError(f"{path}:{line}: is no complete json ({cause}); download the list again") from None
    clips = root.get("clips") if isinstance(root, dict) else None
    if not isinstance(clips, dict) or not clips:
        raise ValueError(f"{path}:1: has no \"clips\" object; give celebvhq_info.json")
    return clips


def _span(key: str, video_id: str, row: dict[str, Any]) -> Span:
    start = number(row["duration"]["start_sec"], "start_sec")
    end = number(row["duration"]["end_sec"], "end_sec")
    if not 0 <= start < end:
        raise Drop("bad row", f"{key!r} runs from {start} to {end} s")
    box = row["bbox"]
    sides = [number(box[side], side) for side in ("left", "top", "right", "bottom")]
    rest = {name: value for name, value in row.items() if name not in ("ytb_id", "duration", "bbox")}
    return {
        "key": lists.safe_name(key.removeprefix(f"{video_id}_")), "start_s": start, "end_s": end,
        "boxes": [[0.0, *lists.checked_box(sides, "bbox")]], "box_unit": "frame", "box_kind": "head",
        "split": "train",
        "row_sha1": lists.row_sha1(json.dumps({key: row}, sort_keys=True)), "row": {**rest, "name": key},
    }
