"""`pv3d bench memory`: memory and seconds of an update by variant, batch, precision, ZeRO stage and savings.

Each row runs in processes of its own (`pipelines.benches.updates`). A row that does not fit says so. The
table is Markdown, and with --out FILE in a file as well. Of several workers the one that takes most counts.

`<row>/tensors_gb`, `<row>/<phase>_gb`    the most that tensors hold at once; `<row>/start_gb` at the start
`<row>/peak_gb`              the process with its program; on CUDA what PyTorch's allocator takes
`<row>/update_s`, `<row>/<phase>_s`
`<row>/tensors_memory_ratio`, `<row>/<phase>_memory_ratio`    to the row of the same variant and batch in
                             float32 with no saving
`<variant>/<precision>/largest_batch`    on CUDA, or with --largest 1: what still fits, by trying
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config import VARIANTS
from model.config import variant as named_variant
from pipelines.benches.updates import PHASES, Setting, check_device, measure
from pipelines.document import did_you_mean

CHUNK_RAYS = 1024                            # a quarter of a frame of 64 x 64 rays
MOST = 512                                   # videos that the search for the largest batch goes up to
BATCHES = {"cpu": {"tiny": (4, 16), "mid_128": (2, 4, 8)}, "cuda": {}}
SHOWN = {"cpu": "tiny,mid_128", "cuda": "tiny,mid_128,voxceleb_512"}

Measured = dict[str, float] | None
Table = list[tuple[Setting, Measured]]


def run(
    variants: str = "",
    batches: str = "",
    device: str = "cpu",
    updates: int = 1,
    zero_workers: int = 2,
    savings: int = 1,
    largest: int = -1,
    out: str = "",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The figures of the module's text, and "table". `variants` and `batches` are lists with commas. With
    `updates` 0 a row is one update, its times those of a first call. `zero_workers` 0 leaves the ZeRO stages
    out, `savings` 0 the rows of checkpointing, chunks and accumulation."""
    check_device("memory", device)
    names = (variants or SHOWN[device]).split(",")
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"bench memory: --variants {name}: unknown{did_you_mean(name, VARIANTS)}")
    given = _numbers(str(batches))
    if min([updates, zero_workers, savings]) < 0:
        raise ValueError("bench memory: --updates, --zero-workers and --savings are 0 or more")
    wanted = [row for name in names for row in rows(name, given, device, zero_workers, bool(savings))]
    for row in wanted:
        assert row.made, "raises ValueError before anything is started"
    table: Table = []
    for number, row in enumerate(wanted, 1):
        table.append((row, measure(row, updates)))
        progress(f"{number} of {len(wanted)}: {row.key}: {_told(table[-1][1])}")
    figures = _figures(table)
    if largest > 0 or (largest < 0 and device == "cuda"):
        for row in _searched(names, device):
            found = largest_batch(row, progress)
            figures[f"{row.variant}/{row.precision}/largest_batch"] = float(found.batch if found else 0)
            if found:
                table.append((found, measure(found, updates)))
    text = markdown(table)
    if out:
        Path(out).expanduser().write_text(text + "\n", "utf-8")
    return {"figures": figures, "table": text}


def rows(
    variant: str, batches: list[int], device: str, zero_workers: int, savings: bool
) -> Iterator[Setting]:
    """The rows of a variant: batches by precision; with the last batch what saves memory, and the stages."""
    several = batches or list(BATCHES[device].get(variant, (1, 2)))
    for batch in several:
        for precision in _precisions(device):
            yield Setting(variant, batch, precision, device=device)
    if savings:
        one = Setting(variant, several[-1], device=device)
        chunks = {"rendering.chunk_rays": min(CHUNK_RAYS, _rays(variant) // 4)}
        yield replace(one, checkpointing=True)
        yield replace(one, model=chunks)
        yield replace(one, checkpointing=True, model=chunks)
        if (parts := _parts(one)) > 1:
            yield replace(one, accumulate=parts)
            yield replace(one, accumulate=parts, checkpointing=True, model=chunks)
    if zero_workers and _has_devices(device, zero_workers):
        shared = _divisible(variant, several[-1], zero_workers)
        for zero in (0, 1, 2):
            yield Setting(variant, shared, zero=zero, workers=zero_workers, device=device)


def largest_batch(row: Setting, progress: Callable[[str], None] = lambda line: None) -> Setting | None:
    """`row` with the most videos that fit in one process, to an eighth. None when not even the fewest that
    the minibatch groups allow do."""
    step = _divisible(row.variant, 1, 1)

    def fits(steps: int) -> bool:
        one = replace(row, batch=steps * step)
        found = measure(one, 0)
        progress(f"{one.key}: {_told(found)}")
        return found is not None

    most = largest_that(fits, MOST // step)
    return replace(row, batch=most * step) if most else None


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, or up to an eighth less; 0 for none. Doubled until one
    does not fit, then halved between."""
    good, bad, trial = 0, most + 1, 1
    while bad - good > max(1, good // 8):
        good, bad = (trial, bad) if fits(trial) else (good, trial)
        trial = 2 * good if 2 * good < bad else (good + bad) // 2
    return good


def markdown(table: Table) -> str:
    """The rows for docs/training.md."""
    head = ["variant", "batch", "precision", "ZeRO, workers", "saved by", "GB of tensors", "GB in all",
            "s per update", *(f"{name}: GB, s" for name in PHASES)]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row, found in table:
        cells = [row.variant, str(row.batch), row.precision, f"{row.zero}, {row.workers}", row.extras or "-"]
        if found is None:
            cells += ["does not fit"] + ["-"] * (2 + len(PHASES))
        else:
            cells += [f"{found['tensors_gb']:.2f}", f"{found['peak_gb']:.2f}", f"{found['update_s']:.3g}"]
            cells += [f"{found[f'{name}_gb']:.2f}, {found[f'{name}_s']:.3g}" for name in PHASES]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figures(table: Table) -> dict[str, float]:
    figures = {f"{row.key}/{name}": v for row, found in table if found for name, v in found.items()}
    for row, found in table:
        plain = Setting(row.variant, row.batch).key
        compared = found and row.workers == 1 and f"{plain}/peak_gb" in figures
        for name in ("tensors", *PHASES) if compared else ():
            over = figures[f"{row.key}/{name}_gb"] / figures[f"{plain}/{name}_gb"]
            figures[f"{row.key}/{name}_memory_ratio"] = over
    return figures


def _told(found: Measured) -> str:
    return "does not fit" if found is None else f"{found['tensors_gb']:.2f} GB, {found['update_s']:.3g} s"


def _numbers(text: str) -> list[int]:
    parts = [part for part in text.split(",") if part.strip()]
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"bench memory: --batches {text}: give whole numbers with commas, such as 1,2")
    return [int(part) for part in parts]


def _precisions(device: str) -> list[str]:
    from model.bench import has_bf16

    return ["float32", "bfloat16"] if has_bf16(device) else ["float32"]


def _searched(names: list[str], device: str) -> list[Setting]:
    """What the largest batch is looked for with: the last variant, which is the largest."""
    return [Setting(names[-1], 1, precision, device=device) for precision in _precisions(device)]


def _rays(variant: str) -> int:
    return named_variant(variant).model.rendering.resolution ** 2


def _parts(row: Setting) -> int:
    """The most parts that the minibatch groups of the row's batch allow."""
    for parts in range(row.batch, 1, -1):
        try:
            if replace(row, accumulate=parts).made:
                return parts
        except ValueError:
            continue
    return 1


def _divisible(variant: str, batch: int, workers: int) -> int:
    """The fewest videos from `batch` on that so many workers can share, in whole minibatch groups."""
    d = named_variant(variant).model.discriminator
    for videos in range(batch, batch + 1024):
        groups = videos % d.minibatch_group_video == 0 and videos * d.frames % d.minibatch_group_image == 0
        try:
            if groups and Setting(variant, videos, workers=workers).made:
                return videos
        except ValueError:
            continue
    raise AssertionError("a multiple of every group and of the workers is among them")


def _has_devices(device: str, workers: int) -> bool:
    import torch

    return device == "cpu" or torch.cuda.device_count() >= workers
