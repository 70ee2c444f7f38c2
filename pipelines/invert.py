"""`pv3d invert`: a picture or a video becomes a latent, which all other commands show.

    OUT.safetensors, OUT.json      the latent: see pipelines.latents
    OUT.state.safetensors          while it goes on: where the same command continues after a stop
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.weights import digest
from pipelines.inversion import Inversion, Settings, State, as_numbers, settings_key
from pipelines.invert_face import Found, find_face, is_picture
from pipelines.latents import Latent, tensors_path

if TYPE_CHECKING:
    from pipelines.api import Model

log = logging.getLogger(__name__)

SAVE_S = 5.0                     # seconds of work that a stop may lose


def invert(
    source: Path, out: Path, *, model: str | None, tracking: str, restart: bool = False, **options: Any
) -> dict[str, Any]:
    """Invert `source` into the latent `out`; returns its json's main values. `options` as in `invert_file`,
    and those of `Settings`. Raises ValueError of one line."""
    from pipelines.api import Model
    from pipelines.progress import Progress

    # `perceptual` is a network's file here, and in Settings the weight of what it says
    names = Settings.__dataclass_fields__.keys() - {"perceptual"}
    own = {name: options.pop(name) for name in names if name in options}
    settings = Settings(**{name: value for name, value in own.items() if value is not None})
    opened = Model.load(model, tracking)
    path = tensors_path(out)
    state = path.with_name(f"{path.stem}.state.safetensors")
    if restart:
        state.unlink(missing_ok=True)
    with Progress(["invert"]) as bars:
        begun = False

        def tick(done: int, left: int) -> None:
            nonlocal begun
            if not begun:
                bars.expect("invert", done + left)
                begun = True
            if done:
                bars.done("invert", done)
            bars.tick()

        latent = invert_file(opened, source, settings, state=state, tick=tick, **options)
    latent.save(path)
    state.unlink(missing_ok=True)
    told = ("psnr", "mean_latent_psnr", "loss", "seconds", "warnings")
    return {"latent": str(path), "frames": len(latent), **{name: latent.about[name] for name in told}}


def invert_file(
    model: Model, source: Path, settings: Settings | None = None, *, frames: int | None = None,
    face: int | None = None, start_s: float = 0.0, perceptual: Path | None = None, state: Path | None = None,
    tick: Callable[[int, int], None] = lambda done, left: None,
) -> Latent:  # fmt: skip
    """The latent of a picture, or of `frames` frames of a video (those of the model's window unless given)
    from `start_s` on. `face`: the how-manieth largest. `perceptual`: a TorchScript network in place of the
    listed one. `state`: a file to continue from and to save to. `tick(done, left)` counts steps.

    Raises ValueError of one line for what cannot be inverted.
    """
    settings = settings or Settings()
    config = model.config
    count = 1 if is_picture(source) else frames or config.frames_span
    if count < 1:
        raise ValueError(f"--frames {count}: give 1 or more")
    found = find_face(source, config.img_resolution, frames=count, face=face, start_s=start_s)
    for line in found.warnings:
        log.warning("%s: %s", source, line)
    about = {
        "source": source.name, "source_sha256": digest(source), "kind": "image" if count == 1 else "video",
        "face": face, "start_s": start_s, "warnings": list(found.warnings),
    }  # fmt: skip
    return invert_frames(model, found, settings, about, perceptual=perceptual, state=state, tick=tick)


def invert_frames(
    model: Model, found: Found, settings: Settings, about: dict[str, Any], *, perceptual: Path | None = None,
    state: Path | None = None, tick: Callable[[int, int], None] = lambda done, left: None,
) -> Latent:  # fmt: skip
    """The latent of aligned frames with their cameras."""
    from pipelines.inversion_loss import Loss
    from pipelines.outputs import make_folder

    generator = model.opened.generator
    device = generator.plane_axes.device
    loss = Loss(perceptual, device)
    count = len(found.pictures)
    times = np.linspace(0, 1, count, dtype=np.float32) if count > 1 else np.zeros(1, np.float32)
    source = [about.get("source_sha256"), about.get("face"), about.get("start_s"), count, loss.name]
    key = settings_key(settings, model.sha256, *map(str, source))
    before = State.load(state, key, device) if state is not None else None
    work = Inversion(generator, found.pictures, found.cameras, times, loss, settings, before)
    if before is not None:
        log.info("continuing at step %d of %d", before.step, settings.steps)
    if state is not None:
        make_folder(state.parent)
    saved = time.monotonic()

    def each() -> None:
        nonlocal saved
        if state is not None and time.monotonic() - saved >= SAVE_S:
            work.state.save(state, key)
            saved = time.monotonic()
        tick(1, settings.steps - work.state.step)

    tick(0, settings.steps - work.state.step)
    done = work.run(each)
    assert done.best_ws is not None
    assert done.best_moved is not None
    return Latent(
        ws=as_numbers(done.best_ws), z_m=as_numbers(work.motion(done.best_moved)), times=times,
        cameras=found.cameras, model=model.sha256, target=found.pictures,
        about={
            **about, "model_name": model.name, "settings": asdict(settings), "loss": loss.name,
            "curve": done.curve, "psnr": done.curve[-1]["best"], "mean_latent_psnr": done.curve[0]["psnr"],
            "seconds": round(done.seconds, 2),
        },
    )  # fmt: skip
