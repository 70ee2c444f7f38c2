"""What the source videos of the kept clips are, for the report: resolutions and frame rates."""

from __future__ import annotations

from collections import Counter
from typing import Any

from infra.storage import FolderStorage, Storage
from pipelines.report_figures import Seen, many

SIZES_SHOWN = 12
PROBED = 200  # files whose frame rate is asked for


def source_tables(store: Storage, seen: Seen) -> list[dict[str, Any]]:
    """Counts of resolutions and frame rates of the source videos of the sampled clips."""
    sizes = Counter(f"{width}×{height}" for width, height in seen.sizes.values())
    rates = _probed(store, seen)
    made = [
        ("Resolution of the sources", sizes, f"{many(len(seen.sizes), 'video')}, px, upright"),
        ("Frame rate of the sources", rates, f"{many(rates.total(), 'file')} asked, frames per second"),
        ("Frame rate of the clips", seen.rates, f"{many(seen.rates.total(), 'clip')}, frames per second"),
    ]
    return [
        {"title": title, "rows": rows(counts), "caption": caption}
        for title, counts, caption in made
        if counts
    ]


def _probed(store: Storage, seen: Seen) -> Counter[str]:
    """Frame rates of files that can be opened without a download."""
    from stages.video import DecodeError, Reader, resolve

    rates: Counter[str] = Counter()
    for video in list(seen.files.values())[:PROBED]:
        if video.startswith("s3://") or (video.startswith("store:") and not isinstance(store, FolderStorage)):
            continue
        try:
            with resolve(store, video) as path, Reader(path, exact=False) as reader:
                rates[f"{reader.info().fps:.5g}"] += 1
        except DecodeError:
            rates["cannot be opened now"] += 1
    return rates


def rows(counts: Counter[str], shown: int = SIZES_SHOWN) -> list[dict[str, Any]]:
    """{"text", "count", "share" (of the largest)}; what is rare is added up in the last."""
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(common) > shown:
        rare = common[shown - 1 :]
        common = [*common[: shown - 1], (f"{len(rare)} others", sum(count for _, count in rare))]
    top = max((count for _, count in common), default=1)
    return [{"text": text, "count": count, "share": count / top} for text, count in common]
