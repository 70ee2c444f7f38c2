"""A latent in other motion: `pv3d animate`, `edit` and `transfer` (paper section 4.4; LIA's task)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.api import Model
from pipelines.latents import Floats, Latent, tensors_path
from pipelines.outputs import Format, make_folder, write_clip
from pipelines.packed import PORTRAITS
from pipelines.publish import MARKED, Marking, ready

OWN = "own"                                  # the camera of a latent: from where it was filmed


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a latent is shown."""

    out: Path
    """A folder"""
    camera: str = OWN
    """`own`, or as `pipelines.trajectories.trajectory` takes it"""
    yaw: float | None = None
    pitch: float | None = None
    yaws: Sequence[float] = (0.0,)
    kinds: tuple[str, ...] = ("image",)
    how: Format = "mp4"
    save: Path | None = None
    """Where to write the new latent as well"""
    marking: Marking = MARKED

    def write(self, model: Model, latent: Latent, name: str) -> list[Path]:
        """`out/NAME.mp4` or a folder of PNG frames, and of other kinds `NAME-<kind>`."""
        from pipelines.progress import Progress

        latent = replace(latent, cameras=self._cameras(latent))
        with Progress(["frames"]) as bars:
            bars.expect("frames", len(latent) * len(self.kinds))

            def tick(frames: int) -> None:
                bars.done("frames", frames)
                bars.tick()

            made = {kind: model.render(latent, kind=kind, yaws=self.yaws, tick=tick) for kind in self.kinds}
        make_folder(self.out)
        files = [
            write_clip(
                self.out / (name if kind == "image" else f"{name}-{kind}"), pictures, self.how,
                about={"model": model.sha256[:12]}, marking=self.marking,
            )
            for kind, pictures in made.items()
        ]  # fmt: skip
        return files + ([latent.save(self.save)] if self.save else [])

    def _cameras(self, latent: Latent) -> Floats:
        from pipelines.trajectories import trajectory

        if self.camera == OWN and self.yaw is None and self.pitch is None:
            return latent.cameras
        path = "still" if self.camera == OWN else self.camera
        return trajectory(path, len(latent), yaw_deg=self.yaw, pitch_deg=self.pitch)


def opened(path: Path, model: str | None, tracking: str) -> tuple[Latent, Model]:
    """A latent and its model: the one named, or the one that it was made with. Raises ValueError of one line,
    also for a latent of another model."""
    latent = Latent.load(path)
    name = model or str(latent.about.get("model_name") or PORTRAITS.stem)
    loaded = Model.load(None if name == PORTRAITS.stem else name, tracking)
    try:
        latent.check_model(loaded.sha256, name)
    except ValueError as error:
        raise ValueError(f"latent {path}: {error}") from None
    return latent, loaded


def _apart(save: Path | None, *read: Path) -> None:
    """Raises ValueError where `save` is a latent that was read: the pictures that it was inverted from would
    be gone."""
    if save is not None and tensors_path(save).resolve() in {tensors_path(path).resolve() for path in read}:
        raise ValueError(f"--save {save}: is a latent that is read here; give another name")


def animate(
    path: Path, shown: Shown, *, seeds: Sequence[int], frames: int | None, model: str | None, tracking: str
) -> list[Path]:
    """The portrait in the motion of each seed."""
    _apart(shown.save, path)
    ready(shown.marking)
    latent, loaded = opened(path, model, tracking)
    times = loaded.times(min(16, loaded.config.frames_span) if frames is None else frames)
    files: list[Path] = []
    for seed in seeds:
        moved = loaded.animate(latent, seed, times=times)
        files += shown.write(loaded, moved, f"{path.stem}-motion{seed:04d}")
    return files


def edit(
    path: Path, shown: Shown, *, scale: float | None, seed: int | None, model: str | None, tracking: str
) -> list[Path]:
    """Its motion sampled anew, or its own made stronger or weaker; or both."""
    _apart(shown.save, path)
    latent, loaded = opened(path, model, tracking)
    ready(shown.marking)
    if scale is None and seed is None:
        raise ValueError("--scale, --seed: give one of them, or both")
    name, times = path.stem, _moving(latent, path)
    if seed is not None:
        latent = loaded.animate(latent, seed, times=times)
        name += f"-seed{seed:04d}"
    if scale is not None:
        latent = latent.scaled(scale)
        name += f"-scale{scale:g}"
    return shown.write(loaded, latent, name)


def transfer(path: Path, shown: Shown, *, driving: Path, model: str | None, tracking: str) -> list[Path]:
    """The portrait in the motion of another latent."""
    _apart(shown.save, path, driving)
    ready(shown.marking)
    latent, loaded = opened(path, model, tracking)
    other = Latent.load(driving)
    _moving(other, driving)
    return shown.write(loaded, latent.driven_by(other), f"{path.stem}-as-{driving.stem}")


def _moving(latent: Latent, path: Path) -> Floats:
    """Its times. Raises ValueError for a picture's."""
    if not (latent.times > 0).any():
        raise ValueError(f"latent {path}: is of a picture, which has no motion; see `pv3d animate`")
    return latent.times
