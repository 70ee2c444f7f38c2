"""Reading lists of the size that people have: rows per second and bytes of memory per row.

The lists are made for the purpose and read as `pv3d run` reads them, duplicates looked for. A row of
VoxCeleb2 is one frame of a track; its memory is counted per utterance file.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.storage import FolderStorage
from stages.base import Source
from stages.sources.several import mark_duplicates
from stages.sources.talkinghead import TalkingHead
from stages.sources.urls import Urls
from stages.sources.voxceleb import VoxCeleb

FRAMES = 150                     # of an utterance
TRACK = "Reference : \t{video}\n\nFRAME \tX \tY \tW \tH \n"


def run(rows: int = 50_000, progress: Callable[..., object] | None = None) -> dict[str, Any]:
    """Figures `<list>_rows_per_s` (CPU time of one core) and `<list>_bytes_per_row` (peak) of three lists."""
    say = progress or (lambda *words: None)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as name:
        folder = Path(name)
        lists = (("csv", _csv, rows), ("tubes", _tubes, rows), ("voxceleb", _tracks, rows // 25))
        for kind, make, count in lists:
            source = make(folder, count)
            began = time.process_time()
            found = _read(source, folder)
            took = time.process_time() - began
            if found != count:
                raise RuntimeError(f"{kind}: {found} parts of {count} were read")
            tracemalloc.start()
            _read(source, folder)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            figures[f"{kind}_rows_per_s"] = count * (FRAMES if kind == "voxceleb" else 1) / took
            figures[f"{kind}_bytes_per_row"] = peak / count
            say("%s: %d rows in %.1f s", kind, count, took)
    return {"figures": figures}


def _read(source: Source, folder: Path) -> int:
    """Sound parts; no unit is held on to."""
    clips = mark_duplicates(source.clips(FolderStorage(folder)))
    parts = (span for clip in clips for span in clip.listed.get("spans", ()))
    return sum("error" not in span for span in parts)


def _csv(folder: Path, count: int) -> Source:
    path = folder / "list.csv"
    row = 'https://www.youtube.com/watch?v={:011d},{},{},"0.25,0.1,0.75,0.9",person {},CC-BY 4.0,green\n'
    with path.open("w") as file:
        file.write("url,start,end,box,identity,licence,colour\n")
        for n in range(count):
            file.write(row.format(n // 8, n % 8 * 10, n % 8 * 10 + 7.5, n // 16))
    return Urls(str(path))


def _tubes(folder: Path, count: int) -> Source:
    row = "{:011d}_{:04d}, 720, 1280, {}, {}, 504, 63, 792, 351\n"
    with (folder / "train_video_tubes.txt").open("w") as file:
        for n in range(count):
            first = n % 5 * 300
            file.write(row.format(n // 170, n // 5 % 34, first, first + 271))
    return TalkingHead(str(folder))


def _tracks(folder: Path, count: int) -> Source:
    path = folder / "vox2_dev_txt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(count):
            person, video, utterance = n // 100, f"{n // 7:011d}", n % 7
            first = 200 * utterance
            frames = (f"{first + k:06d} \t0.123 \t0.136 \t0.422 \t0.749 \n" for k in range(FRAMES))
            text = TRACK.format(video=video) + "".join(frames)
            archive.writestr(f"txt/id{person:05d}/{video}/{utterance:05d}.txt", text)
    return VoxCeleb(str(path), 2, splits=["train", "held-out"])
