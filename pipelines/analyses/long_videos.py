"""Longer videos (paper, appendix A.5): the model trained and evaluated on windows of 48 frames.

How far frames are from the first one of their window, over the window: in generated videos, whose camera
stands still, and in training clips. A model that has learned the longer motions moves on throughout.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines import svg
from pipelines.analyses import Findings, Subject
from pipelines.page import Figure, Section

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

FRAMES = 48
PAPERS = 16
"""Frames of the paper's other models, which the first figure is of, too."""


def trained(workflow: Workflow, ray_address: str | None) -> Workflow:
    """The workflow of 48-frame windows, its training and evaluation done, while the store is held. Raises
    ValueError when no clip is so long."""
    from infra import cluster
    from pipelines.evaluate import evaluate
    from pipelines.train import train

    train_settings = workflow.train
    model = {key: value for key, value in train_settings.model.items() if key != "frames_span"}
    changed = train_settings.model_copy(update={"model": {**model, "frames_span": FRAMES}})
    if train_settings.name:
        changed = changed.model_copy(update={"name": f"{train_settings.name}-{FRAMES}"})
    evaluated = workflow.evaluate.model_copy(update={"frames": FRAMES})
    longer = dataclasses.replace(workflow, train=changed, evaluate=evaluated)
    try:
        train(longer, ray_address=ray_address, beside=True)
        evaluate(longer)
    finally:
        cluster.stop()
    return longer


def long_videos(subject: Subject) -> Findings:
    from pipelines.contact import inline
    from pipelines.evaluate_samples import FPS, one_thread, watched
    from pipelines.grid import Grid, grid_frames
    from pipelines.models import of_checkpoint
    from pipelines.publish import PLAIN, publish
    from stages.video import write_video

    opened = of_checkpoint(subject.checkpoint.store, subject.checkpoint.key)
    people = watched(range(subject.count), subject.count, "long")
    generated = np.mean([_moved(opened, subject, number) for number in people], axis=0)
    real = _real(subject)
    with tempfile.TemporaryDirectory(prefix="pv3d-long-") as folder:
        path = Path(folder, "sample.mp4")
        grid = Grid(tuple(range(min(4, subject.count))), frames=FRAMES)
        with one_thread():
            write_video(path, grid_frames(opened.generator, grid), FPS)
        publish(path, marking=PLAIN)
        video = path.read_bytes()
    last, early = float(generated[-1]), float(generated[PAPERS - 1])
    numbers = {
        "generated_moved_16": early, "generated_moved_48": last,
        "real_moved_16": float(real[PAPERS - 1]), "real_moved_48": float(real[-1]),
    }  # fmt: skip
    says = (
        f"After {FRAMES} frames a generated frame is {last:.3g} grey levels from the first, {early:.3g} "
        f"after {PAPERS}; in training clips {real[-1]:.3g} and {real[PAPERS - 1]:.3g}."
    )
    figures = [
        Figure(title, svg.line([(float(i), float(y)) for i, y in enumerate(values)], name="frame",
                               unit="grey levels from frame 0", label=title))
        for title, values in (("generated, camera still", generated), ("training clips", real))
    ]  # fmt: skip
    text = "One column per person: from the front, from 30° to either side, and depth."
    sections = [
        Section(title="Samples", text=text, video=inline(video, "video/mp4")),
        Section(title="Motion over the window", figures=figures),
    ]
    return Findings(f"videos of {FRAMES} frames", numbers, says, sections, {".mp4": video})


def _moved(opened: Any, subject: Subject, number: int) -> NDArray[np.float64]:
    from pipelines.evaluate_samples import one_thread

    times = opened.clips.window_times(opened.generator.config, FRAMES)
    camera = opened.cameras.canonical_camera().encode()
    with one_thread():
        parts = opened.clips.render_clip(
            opened.generator, subject.seed * 1_000_000 + number, np.stack([camera] * FRAMES), times
        )
        return moved(np.concatenate([opened.clips.to_uint8(part.image[0]) for part in parts]))


def moved(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[T]: mean absolute difference of each frame from the first, grey levels of 255."""
    pixels = frames.reshape(len(frames), -1).astype(np.float64)
    return np.asarray(np.abs(pixels - pixels[0]).mean(axis=1))


def _real(subject: Subject) -> NDArray[np.float64]:
    """The same of training clips, from a frame on that the seed decides."""
    from pipelines.sampling import eligible
    from stages.shards import open_dataset

    dataset = open_dataset(subject.workflow.store())
    clips = eligible(dataset, FRAMES)[0]
    random, found = np.random.default_rng([subject.seed, 48]), []
    for sample in clips[: subject.count]:
        first = int(random.integers(sample.frame_count - FRAMES + 1))
        found.append(moved(dataset.frames(sample, range(first, first + FRAMES))))
    return np.asarray(np.mean(found, axis=0))
