"""`pv3d bench long`: what long windows, and a D_vid over more frames, cost in memory and time.

Windows of 16 and 48 frames with two frames for D_vid, then windows of 48 with 2, 3, 4 and 8. Each runs in
processes of its own (`pipelines.benches.updates`) that take turns; of the times the best of the rounds
counts, of the memory the most.

`span_16/tensors_gb`, `span_16/update_s`, and so for `span_48` and `frames_<n>`
`span_48_over_16/seconds`, `span_48_over_16/memory`
`frames_<n>_over_2/seconds`, `frames_<n>_over_2/memory`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.config import VARIANTS
from pipelines.benches.updates import Setting, check_device, measure
from pipelines.document import did_you_mean

SPANS = (16, 48)
FRAMES = (2, 3, 4, 8)


def run(
    variant: str = "tiny",
    batch: int = 4,
    device: str = "cpu",
    updates: int = 2,
    rounds: int = 2,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The figures of the module's text."""
    check_device("long", device)
    if variant not in VARIANTS:
        raise ValueError(f"bench long: --variant {variant}: unknown{did_you_mean(variant, VARIANTS)}")
    if min(batch, updates, rounds) < 1:
        raise ValueError("bench long: --batch, --updates and --rounds are 1 or more")

    def setting(span: int, frames: int) -> Setting:
        return Setting(variant, batch, device=device,
                       model={"frames_span": span, "discriminator.frames": frames})  # fmt: skip

    names = {f"span_{span}": setting(span, 2) for span in SPANS}
    names |= {f"frames_{n}": setting(SPANS[-1], n) for n in FRAMES if n > 2}
    for row in names.values():
        assert row.made, "raises ValueError before anything is started"
    figures: dict[str, float] = {}
    for number in range(rounds):
        for name, row in names.items():
            found = measure(row, updates)
            if found is None:
                raise ValueError(f"bench long: --batch {batch}: {name} does not fit into memory; lower it")
            seconds, peak = f"{name}/update_s", f"{name}/tensors_gb"
            figures[seconds] = min(found["update_s"], figures.get(seconds, float("inf")))
            figures[peak] = max(found["tensors_gb"], figures.get(peak, 0.0))
            progress(f"round {number + 1}: {name}: {figures[peak]:.2f} GB, {figures[seconds]:.3g} s")
    return {"figures": figures | _ratios(figures)}


def _ratios(figures: dict[str, float]) -> dict[str, float]:
    """All against two frames in a window of 48."""
    short, base = (f"span_{span}" for span in SPANS)
    pairs = {f"{base}_over_{SPANS[0]}": (base, short)}
    pairs |= {f"frames_{n}_over_2": (f"frames_{n}", base) for n in FRAMES if n > 2}
    return {
        f"{name}/{what}": figures[f"{a}/{figure}"] / figures[f"{b}/{figure}"]
        for name, (a, b) in pairs.items()
        for what, figure in (("seconds", "update_s"), ("memory", "tensors_gb"))
    }
