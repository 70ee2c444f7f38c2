"""Pictures for the viewer: what is wanted as plain values, and a renderer that never computes a thing twice.

Styles are kept per portrait, planes per portrait and frame: while only the camera moves, only rays are cast
(planes do not depend on the camera). A picture that nobody wants any more is given up between two layers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.api import Model
from pipelines.latents import Latent
from pipelines.outputs import pictures_of
from pipelines.view_motion import Directions, find_directions, moved

Picture = NDArray[np.uint8]
T = TypeVar("T")

PLANES_BYTES = 1 << 29
PICTURES_BYTES = 1 << 27
FULL, RAW, HALF, QUARTER = "full", "raw", "half", "quarter"
LEVELS = (FULL, RAW, HALF, QUARTER)
"""From best to quickest: the model's picture; without super-resolution; rays for a half, a quarter of the
side."""


@dataclass(frozen=True)
class Portrait:
    """Who is shown and how they move: what the planes depend on, but for the time."""

    seed: int = 0
    psi: float = 1.0
    mix_seed: int = 1
    mixed: int = 0
    """K: the first so many layers have the style of `mix_seed` (paper, Fig. 7)."""
    motion_seed: int | None = None
    """Whose motion; None for the portrait's own"""
    directions: tuple[tuple[int, int, float], ...] = ()
    """(layer, component, standard deviations)"""
    latent: str | None = None
    """Name of a loaded latent, in place of `seed`"""


@dataclass(frozen=True)
class Shot:
    """One picture."""

    portrait: Portrait
    frame: int
    camera: tuple[float, ...]
    """25 numbers"""
    kind: str = "image"
    level: str = FULL


class StaleError(Exception):
    """The picture under way is no longer wanted."""


class Kept(Generic[T]):
    """Values by key, the latest used; what is over `most` bytes goes."""

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self._most, self._size, self._bytes = most, size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._bytes += self._size(value)
        while self._bytes > self._most and len(self._values) > 1:
            self._bytes -= self._size(self._values.popitem(last=False)[1])
        return value

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values


class Renderer:
    """One model, for all pages that look at it; one picture at a time."""

    def __init__(self, model: Model) -> None:
        self.model, self.config, self.generator = model, model.config, model.opened.generator
        self.directions: Directions = find_directions(self.generator)
        self.latents: dict[str, Latent] = {}
        self.planes_made = 0
        self._front = model.opened.cameras.canonical_camera().encode()
        self._lock = threading.Lock()
        self._casting = threading.local()        # others may call the same networks meanwhile
        self._codes: Kept[tuple[Tensor, Tensor]] = Kept(64, lambda _: 1)
        self._planes: Kept[Tensor] = Kept(PLANES_BYTES, lambda x: x.numel() * x.element_size())
        self._pictures: Kept[Picture] = Kept(PICTURES_BYTES, lambda x: x.nbytes)
        for module in self.generator.modules():
            module.register_forward_pre_hook(self._give_up)

    def frames(self, portrait: Portrait) -> int:
        """How many there are of it."""
        latent = self._latent(portrait)
        own = latent is not None and portrait.motion_seed is None
        return len(latent) if own and latent is not None else int(self.config.frames_span)

    def picture(self, shot: Shot, stale: Callable[[], bool] | None = None) -> Picture:
        """uint8 [H, W, 3], H and W as the level has them. Raises StaleError once `stale()` is true, and
        ValueError for weights that have diverged."""
        with self._lock, torch.no_grad():
            return self._pictures.get(shot, lambda: self._cast(shot, stale))

    def ready(self, shot: Shot) -> bool:
        """Whether the picture is there already."""
        return shot in self._pictures

    def planes_and_style(self, portrait: Portrait, frame: int) -> tuple[Tensor, Tensor]:
        """planes [1, 1, P, C, H, W] and ws [1, 1, num_ws, W]"""
        with self._lock, torch.no_grad():
            return self._planes_of(portrait, frame)

    @contextmanager
    def _watched(self, stale: Callable[[], bool] | None) -> Iterator[None]:
        self._casting.stale = stale
        try:
            yield
        finally:
            self._casting.stale = None

    def _give_up(self, module: nn.Module, arguments: Any) -> None:
        stale = getattr(self._casting, "stale", None)
        if stale is not None and stale():
            raise StaleError

    def _cast(self, shot: Shot, stale: Callable[[], bool] | None) -> Picture:
        with self._watched(stale):
            planes, ws = self._planes_of(shot.portrait, shot.frame)
            camera = torch.tensor(shot.camera, device=planes.device).view(1, 1, -1)
            if shot.level == FULL or shot.kind != "image":
                side = None if shot.level in (FULL, RAW) else self.side(shot.level)
                frames = self.generator.render(
                    planes, ws, camera, rendering_resolution=side, deterministic=True,
                    return_xyz=shot.kind == "normals",
                )
                made: Picture = pictures_of(frames, camera[0], self.config, shot.kind)[0, 0]
                return made
            return self._raw(planes, ws, camera, self.side(shot.level))

    def _raw(self, planes: Tensor, ws: Tensor, camera: Tensor, side: int) -> Picture:
        """What rays see, before super-resolution."""
        generator, fine = self.generator, int(self.config.rendering.samples_fine)
        u = torch.linspace(0, 1, fine, device=ws.device).expand(1, side * side, -1) if fine else None
        features, *_ = generator.trace(planes[0], camera[0], side, None, u)
        raw = generator.to_img_raw(features, ws[0, :, 0])
        picture: Picture = self.model.opened.clips.to_uint8(raw[0])
        return picture

    def side(self, level: str) -> int:
        """Rays per side."""
        whole = int(self.config.rendering.resolution)
        return max(whole // {HALF: 2, QUARTER: 4}.get(level, 1), 8)

    def _latent(self, portrait: Portrait) -> Latent | None:
        return self.latents[portrait.latent] if portrait.latent is not None else None

    def _time(self, portrait: Portrait, frame: int) -> float:
        latent = self._latent(portrait)
        if latent is not None and portrait.motion_seed is None:
            return float(latent.times[frame])
        return frame / (int(self.config.frames_span) - 1)

    def _style(self, portrait: Portrait) -> tuple[Tensor, Tensor]:
        """ws [1, T or 1, num_ws, W] and motion [1, T or 1, M]."""
        bare = replace(portrait, directions=())
        return self._codes.get(bare, lambda: self._map(bare))

    def _map(self, portrait: Portrait) -> tuple[Tensor, Tensor]:
        ws, motion = self._of_seed(portrait.seed, portrait.psi)
        latent = self._latent(portrait)
        if latent is not None:
            codes = self.model._codes(latent)
            mean = self.generator.backbone.mapping.w_avg
            ws, motion = mean.lerp(codes.ws, portrait.psi), codes.motion
        if portrait.mixed:
            other, _ = self._of_seed(portrait.mix_seed, portrait.psi)
            first = other[:, :, : portrait.mixed].expand(-1, ws.shape[1], -1, -1)
            ws = torch.cat([first, ws[:, :, portrait.mixed :]], dim=2)
        if portrait.motion_seed is not None:
            motion = self._of_seed(portrait.motion_seed, 1.0)[1]
        return ws, motion

    def _of_seed(self, seed: int, psi: float) -> tuple[Tensor, Tensor]:
        codes = self.model.opened.clips.codes(
            self.generator, seed, self._front[None], psi=psi, mapping_camera=self._front
        )
        return codes.ws, codes.motion

    def _planes_of(self, portrait: Portrait, frame: int) -> tuple[Tensor, Tensor]:
        ws, motion = (x[:, min(frame, x.shape[1] - 1)][:, None] for x in self._style(portrait))
        return self._planes.get((portrait, frame), lambda: self._make(portrait, frame, ws, motion)), ws

    def _make(self, portrait: Portrait, frame: int, ws: Tensor, motion: Tensor) -> Tensor:
        time = torch.tensor([[self._time(portrait, frame)]], device=ws.device)
        self.planes_made += 1
        with moved(self.generator, self.directions, portrait.directions):
            planes: Tensor = self.generator.planes(ws, motion, time, noise_mode="const")
        return planes
