"""A model in Python: generate, mesh, invert, and what follows from a latent. The commands are made of this.

    from pipelines.api import Model

    model = Model.load("models:/pv3d@candidate")          # or the folder of a checkpoint, or a storage.root
    clip = next(model.generate([0])).pictures["image"]    # uint8 [16, H, W, 3]
    latent = model.invert("portrait.jpg")
    moving = model.render(model.animate(latent, seed=1))

See docs/api.md. Arrays are numpy's; torch stays inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.latents import Latent
from pipelines.models import OpenModel, open_model
from pipelines.trajectories import trajectory, turned

if TYPE_CHECKING:
    from model.clips import Codes
    from model.config import ModelConfig
    from model.generator import Frames
    from pipelines.inversion import Settings
    from pipelines.meshes import Mesh

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]

TRACKING = "sqlite:///runs/mlflow.db"
MOST_PSI = 100.0                             # far beyond any face, and what weights of sound models bear


@dataclass(frozen=True)
class Generated:
    """One clip of `Model.generate`."""

    seed: int
    latent: Latent
    pictures: Mapping[str, Picture]
    """By kind (image, depth, normals): uint8 [T, H, W of all views, 3] RGB"""


@dataclass(frozen=True)
class Model:
    """A generator and all that can be asked of it. Make one by `load`."""

    opened: OpenModel
    clips_at_once: int | None = None
    """Rendered in one batch; as many as fill the device unless set."""

    @classmethod
    def load(cls, name: str | None = None, tracking: str = TRACKING) -> Model:
        """`models:/NAME@ALIAS` or `models:/NAME/VERSION` (in the registry at `tracking`), the folder of a
        checkpoint, a `storage.root` or a file of `pv3d pack`; the model that ships with the project unless
        named. Raises ValueError of one line for what there is not."""
        return cls(open_model(name, tracking))

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def config(self) -> ModelConfig:
        config: ModelConfig = self.opened.generator.config
        return config

    @cached_property
    def sha256(self) -> str:
        """Of the generator's weights: what a latent belongs to, wherever the model was opened from."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.opened.generator.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)} ".encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def times(self, frames: int, span: tuple[float, float] | None = None) -> Floats:
        """[frames] in [0, 1]: consecutive frames of the training window from 0 on; with a `span`, `frames`
        evenly from its first time to its last. Raises ValueError for more frames than the window has, and for
        a span outside [0, 1]."""
        if span is None:
            times: Floats = self.opened.clips.window_times(self.config, frames)
            return times
        first, last = span
        if not (0 <= first <= 1 and 0 <= last <= 1):
            raise ValueError(f"--span {first:g}:{last:g}: give two times from 0 to 1, such as 0:0.5")
        if frames < 1:
            raise ValueError(f"frames {frames}: give 1 or more")
        return np.linspace(first, last, frames, dtype=np.float32)

    def sample(
        self, seed: int, *, times: Floats | None = None, cameras: Floats | None = None, psi: float = 1.0,
        mapping_camera: Floats | None = None,
    ) -> Latent:  # fmt: skip
        """The latent of a seed: 16 frames from the front unless said. The mapping network sees the first
        frame's camera, as in the paper, or `mapping_camera` [25]."""
        if not abs(psi) <= MOST_PSI:
            raise ValueError(f"--psi {psi:g}: give a number from -{MOST_PSI:g} to {MOST_PSI:g}, such as 0.7")
        times = self.times(min(16, self.config.frames_span)) if times is None else times
        if cameras is None:
            cameras = trajectory("still", len(times), cameras=self.opened.cameras)
        if len(cameras) != len(times):
            raise ValueError(f"{len(cameras)} cameras for {len(times)} times; give one camera per frame")
        codes = self.opened.clips.codes(
            self.opened.generator, seed, cameras, psi=psi, mapping_camera=mapping_camera
        )
        ws = codes.ws[0].cpu().numpy()
        return Latent(
            ws=ws[0] if len(ws) == 1 else ws, z_m=codes.motion[0].cpu().numpy(), times=times,
            cameras=np.asarray(cameras, np.float32), model=self.sha256,
            about={"seed": seed, "psi": psi, "model_name": self.name},
        )  # fmt: skip

    def frames(
        self, latents: Sequence[Latent], cameras: Floats, times: Floats, *, points: bool = False,
        resolution: int | None = None,
    ) -> Iterator[list[Frames]]:  # fmt: skip
        """Rendered chunks of the clips, one `Frames` (of torch tensors) for each view of `cameras` [V, T,
        25], B = `latents`. `points`: with the positions of surfaces. Raises ValueError for a latent of
        another model."""
        for latent in latents:
            latent.check_model(self.sha256, self.name)
        codes = self.opened.clips.together([self._codes(latent) for latent in latents], len(latents))
        yield from self.opened.clips.render_views(
            self.opened.generator, codes, cameras, times, return_xyz=points, rendering_resolution=resolution
        )

    def render(
        self, latent: Latent, *, kind: str = "image", cameras: Floats | None = None,
        times: Floats | None = None, yaws: Sequence[float] = (0.0,),
        tick: Callable[[int], None] = lambda frames: None,
    ) -> Picture:  # fmt: skip
        """uint8 [T, H, views x W, 3]: the latent at its own times and from its own cameras unless given,
        turned by each of `yaws` degrees, side by side. `kind`: image, depth or normals. `tick` is told how
        many frames are done, chunk by chunk."""
        if times is not None or cameras is not None:
            times = latent.times if times is None else times
            latent = latent.with_motion(_per_frame(latent, times), times, cameras)
        parts = []
        for chunk in self._pictures([latent], latent.cameras, latent.times, (kind,), yaws):
            parts.append(chunk[kind][0])
            tick(len(parts[-1]))
        return np.concatenate(parts)

    def generate(
        self, seeds: Sequence[int], *, times: Floats | None = None, cameras: Floats | None = None,
        psi: float = 1.0, kinds: Sequence[str] = ("image",), yaws: Sequence[float] = (0.0,),
        mapping_camera: Floats | None = None,
    ) -> Iterator[Generated]:  # fmt: skip
        """One clip per seed, in order. Equal arguments give equal pixels, whatever the other seeds. Rendered
        in batches that fill the device."""
        times = self.times(min(16, self.config.frames_span)) if times is None else times
        if cameras is None:
            cameras = trajectory("still", len(times), cameras=self.opened.cameras)
        size = self.clips_at_once or self.opened.clips.clips_at_once(
            self.config, len(times), accelerator=self.opened.generator.plane_axes.is_cuda
        )
        for start in range(0, len(seeds), size):
            some = seeds[start : start + size]
            latents = [
                self.sample(seed, times=times, cameras=cameras, psi=psi, mapping_camera=mapping_camera)
                for seed in some
            ]
            full = latents + latents[-1:] * (size - len(latents))  # one shape: the same pixels in any batch
            chunks = list(self._pictures(full, cameras, times, kinds, yaws))
            for place, (seed, latent) in enumerate(zip(some, latents, strict=True)):
                pictures = {k: np.concatenate([chunk[k][place] for chunk in chunks]) for k in kinds}
                yield Generated(seed, latent, pictures)

    def mesh(self, latent: Latent, *, frame: int = 0, **options: Any) -> Mesh:
        """The surface of one frame of a latent, with normals and colours. `options` as in
        `pipelines.meshes.mesh_of`: level, box, resolution, chunk."""
        from pipelines.meshes import mesh_of

        latent.check_model(self.sha256, self.name)
        return mesh_of(self.opened.generator, *self.planes(latent, frame), **options)

    def planes(self, latent: Latent, frame: int) -> tuple[Any, Any]:
        """planes [1, 1, P, C, H, W] and ws [1, 1, num_ws, W] of one frame, as tensors. Raises ValueError for
        a frame that there is not."""
        import torch

        if not 0 <= frame < len(latent):
            raise ValueError(f"--frame {frame}: the clip has {len(latent)}, give 0 to {len(latent) - 1}")
        codes = self._codes(latent)
        ws, motion = (x[:, min(frame, x.shape[1] - 1)][:, None] for x in (codes.ws, codes.motion))
        time = torch.tensor([[float(latent.times[frame])]], device=ws.device)
        with torch.no_grad():
            return self.opened.generator.planes(ws, motion, time, noise_mode="const"), ws

    def invert(self, source: str | Path, settings: Settings | None = None, **options: Any) -> Latent:
        """The latent of a picture or a video of one person. `options` as in `pipelines.invert.invert_file`.
        Raises ValueError of one line for what shows no face, or none that can be used."""
        from pipelines.invert import invert_file

        return invert_file(self, Path(source), settings, **options)

    def animate(
        self, latent: Latent, seed: int, *, times: Floats | None = None, cameras: Floats | None = None
    ) -> Latent:
        """The portrait in the motion of a seed."""
        times = self.times(min(16, self.config.frames_span)) if times is None else times
        motion = self.sample(seed, times=times).z_m
        return latent.with_motion(motion, times, cameras)

    def reconstruct(self, latent: Latent) -> tuple[Picture, dict[str, Any]]:
        """What the model makes of an inverted picture or video, uint8 [T, H, W, 3], and how near it comes:
        l1, psnr and ssim, and lpips when its network is here. Raises ValueError for a latent without
        `target`."""
        from pipelines.reconstruct import measured

        made = self.render(latent)
        return made, measured(latent, made)

    def _codes(self, latent: Latent) -> Codes:
        import torch

        device = self.opened.generator.plane_axes.device
        ws = torch.from_numpy(latent.ws).to(device)
        motion = torch.from_numpy(latent.z_m).to(device)
        codes: Codes = self.opened.clips.Codes(ws[None, None] if ws.ndim == 2 else ws[None], motion[None])
        return codes

    def _pictures(
        self, latents: Sequence[Latent], cameras: Floats, times: Floats, kinds: Sequence[str],
        yaws: Sequence[float],
    ) -> Iterator[dict[str, Picture]]:  # fmt: skip
        """By kind uint8 [B, t, H, views x W, 3], one chunk of times after the other."""
        import torch

        from pipelines.outputs import pictures_of, side_by_side

        views = np.stack([turned(cameras, yaw) if yaw else np.asarray(cameras, np.float32) for yaw in yaws])
        done = 0
        for chunk in self.frames(latents, views, times, points="normals" in kinds):
            count = chunk[0].image.shape[1]
            seen = torch.from_numpy(views[:, done : done + count]).to(chunk[0].image.device)
            done += count
            yield {
                kind: side_by_side([
                    pictures_of(frames, camera, self.config, kind)
                    for frames, camera in zip(chunk, seen, strict=True)
                ])
                for kind in kinds
            }  # fmt: skip


def _per_frame(latent: Latent, times: Floats) -> Floats:
    """The latent's motion codes at other times: its own of the frame that is nearest in time."""
    if len(latent.z_m) == 1:
        return latent.z_m
    nearest = np.abs(latent.times[None] - times[:, None]).argmin(axis=1)
    return np.asarray(latent.z_m[nearest], np.float32)
