"""What the first K synthesis layers decide: style mixing (paper, appendix A.2, Fig. 7).

One person's styles w in all layers, but another's in the first K. The picture shows K = 0, 2, 4, 6, 8 and
all; the curve how much of the way to the other person the frame has gone, for every K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import svg
from pipelines.analyses import Findings, Subject
from pipelines.page import Figure, Section
from pipelines.publish import marked_png

SHOWN = (0, 2, 4, 6, 8)
EXAMPLES = 4


def mixing(subject: Subject) -> Findings:
    """Frontal frames at t = 0 of `count` pairs of seeds."""
    import cv2

    from pipelines.contact import inline
    from pipelines.evaluate_samples import watched
    from pipelines.models import of_checkpoint

    opened = of_checkpoint(subject.checkpoint.store, subject.checkpoint.key)
    layers = opened.generator.config.num_ws
    shown = [k for k in SHOWN if k < layers] + [layers]
    ways, rows = [], []
    for number in watched(range(subject.count), subject.count, "mixing"):
        frames = mixed(opened, subject.seed * 1_000_000 + 2 * number)
        ways.append(way(frames))
        if number < EXAMPLES:
            rows.append(np.concatenate([frames[k] for k in shown], axis=1))
    curve = np.nanmean(ways, axis=0)
    picture = marked_png(cv2.imencode(".png", np.concatenate(rows)[..., ::-1])[1].tobytes(), {})
    numbers = {f"changed_k{k}": float(curve[k]) for k in shown}
    numbers["sharpest_k"] = float(np.argmax(np.diff(curve)) + 1)
    two, four = (numbers.get(f"changed_k{k}", 1.0) for k in (2, 4))
    says = (
        f"Over {subject.count} pairs, frames go {two:.0%} of the way to the other person with its styles in "
        f"the first 2 of {layers} layers, {four:.0%} in the first 4; layer {numbers['sharpest_k']:.0f} "
        "changes most."
    )
    points = [(float(k), float(y)) for k, y in enumerate(curve)]
    drawn = svg.line(points, name="K", label="share of the way to the other person over K")
    columns = (
        "Each row is a pair: on the left one person, on the right the other, between them the first with the "
        "other's styles in the first K layers. Columns: "
        f"K = {', '.join(str(k) for k in shown[:-1])} and {layers} (all)."
    )
    sections = [
        Section(title="Figure 7", text=columns, picture=inline(picture, "image/png")),
        Section(title="How far", figures=[Figure("share of the way over K", drawn, "in pixels, mean")]),
    ]
    return Findings("style mixing", numbers, says, sections, {".png": picture})


def mixed(opened: Any, seed: int) -> NDArray[np.uint8]:
    """uint8 [num_ws + 1, H, W, 3]: the person of `seed` with the styles of `seed` + 1 in the first K layers,
    for K = 0 to all. The motion is that of `seed`."""
    import torch

    generator, clips = opened.generator, opened.clips
    config = generator.config
    device = next(generator.parameters()).device
    camera = torch.from_numpy(opened.cameras.canonical_camera().encode()).to(device)[None, None]
    codes = [tuple(x.to(device) for x in clips.latents(config, seed + i)) for i in (0, 1)]
    frames = []
    with torch.no_grad():
        ours, theirs = (generator.map(z, camera) for z, _ in codes)
        z, z_m = codes[0]
        motion = z_m if config.motion.code == "z_m" else z
        for k in range(config.num_ws + 1):
            ws = torch.cat([theirs[:, :, :k], ours[:, :, k:]], dim=2)
            planes = generator.planes(ws, motion, torch.zeros(1, 1, device=device), noise_mode="const")
            image = generator.render(planes, ws, camera, deterministic=True).image
            frames.append(clips.to_uint8(image[0, 0]))
    return np.stack(frames)


def way(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[K + 1]: mean distance of each frame from the first, over that of the last; NaN where these are
    equal."""
    pixels = frames.reshape(len(frames), -1).astype(np.float64)
    far = np.abs(pixels - pixels[0]).mean(axis=1)
    return np.asarray(far / far[-1]) if far[-1] > 0 else np.full(len(far), np.nan)
