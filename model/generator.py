"""The generator of PV3D: appearance, motion, time and camera in; video frames out. Read this first.
    v = R(G(z | c, t), c)                                                    (paper section 3.1, Figure 2)
    z, camera --- mapping network ---------------> w      one style per frame             stylegan.py
    z_m x t ----- motion layers -----------------> w_m    K of them, Eq. 1                motion.py
    w, w_m ------ synthesis blocks, Eq. 2 -------> planes [B, T, P, C, H, W]              backbone.py
    planes, camera - decoder and rays, Eq. 5, 6 -> features and raw RGB, R x R     triplane.py, rendering.py
    features, raw - super-resolution ------------> frames [B, T, 3, H, W]          superres.py
Shapes: B videos, T frames of each, N = B T frames (time fastest), M points. Frames are independent given (z,
z_m, t)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import ops, rendering
from model.backbone import Backbone
from model.camera import CAMERA_DIM, check_cameras
from model.config import ModelConfig
from model.stylegan import NoiseMode, ToRGB
from model.superres import SuperResolution
from model.triplane import Decoder, plane_layout, sample_planes


@dataclass
class Frames:
    """Generated frames of B videos x T times. R is the rendering resolution."""

    image: Tensor
    """[B, T, 3, H, W], about [-1, 1], not clamped"""
    image_raw: Tensor
    """[B, T, 3, R, R]"""
    depth: Tensor
    """[B, T, 1, R, R], distance along the ray in world units"""
    weight_total: Tensor
    """[B, T, 1, R, R], opacity in [0, 1]"""
    xyz: Tensor | None = None
    """[B, T, R, R, 3], world position of the surface; only when asked for"""


class Generator(nn.Module):
    """See the module's docstring. Parameter names are those of the published checkpoints."""

    plane_axes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.superresolution = SuperResolution(
            config.plane_features,
            w_dim=config.w_dim,
            img_resolution=config.img_resolution,
            config=config.superresolution,
        )
        self.decoder = Decoder(config.plane_features, config.decoder_hidden, config.plane_features)
        self.to_img_raw = ToRGB(config.plane_features, 3, w_dim=config.w_dim, clamp=256.0)
        self.register_buffer("plane_axes", torch.tensor(config.plane_matrices), persistent=False)
        self.compute_dtype: torch.dtype | None = None
        """None: the dtype of the parameters. bfloat16 (`use_bf16`) is for the convolutions alone."""
        self.checkpointing = False
        """True recomputes renderer and super-resolution in the backward pass: about a quarter less memory."""

    def use_bf16(self) -> Generator:
        """Convolutions in bfloat16 and channels_last: about twice as fast; results are close, not equal."""
        self.compute_dtype = torch.bfloat16
        return ops.channels_last(self)

    def forward(
        self, z: Tensor, z_m: Tensor, times: Tensor, cameras: Tensor, *,
        mapping_cameras: Tensor | None = None, truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None, noise_mode: NoiseMode = "random",
        rendering_resolution: int | None = None, generator: ops.Random = None,
        deterministic: bool = False, update_w_avg: bool = False, return_xyz: bool = False,
        coarse_jitter: Tensor | None = None, fine_u: Tensor | None = None,
    ) -> Frames:  # fmt: skip
        """z [B, z_dim], z_m [B, z_m_dim], times [B, T] in [0, 1], cameras [B, T, 25] -> `Frames`; any T >= 1.
        `mapping_cameras` [B, T, 25] overrides the camera conditioning of the config (the camera swap of
        training does). `deterministic` (always so in eval mode unless `importance_at_eval` is random) draws
        no ray samples; `coarse_jitter` [N, Q, S] and `fine_u` [N, Q, F] set the draws. `generator`: one, or
        one per video."""
        mapping, rendered = self.condition(cameras)
        if mapping_cameras is not None:
            mapping = mapping_cameras
        ws = self.map(z, mapping, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
                      update_w_avg=update_w_avg)  # fmt: skip
        planes = self.planes(ws, z_m if self.config.motion.code == "z_m" else z, times,
                             noise_mode=noise_mode, generator=generator)  # fmt: skip
        return self.render(
            planes, ws, rendered, rendering_resolution=rendering_resolution, generator=generator,
            deterministic=deterministic, return_xyz=return_xyz, coarse_jitter=coarse_jitter, fine_u=fine_u,
        )  # fmt: skip

    def condition(self, cameras: Tensor) -> tuple[Tensor, Tensor]:
        """cameras [B, T, 25] -> those of the mapping network and those that render (Table 2c)."""
        mode = self.config.camera_conditioning
        shared = cameras[:, :1].expand_as(cameras)
        share_mapping = mode in ("map", "all") or (mode == "mapt" and not self.training)
        return shared if share_mapping else cameras, shared if mode == "all" else cameras

    def map(
        self, z: Tensor, cameras: Tensor, *, truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None, update_w_avg: bool = False,
    ) -> Tensor:  # fmt: skip
        """z [B, z_dim], mapping cameras [B, T, 25] -> ws [B, T, num_ws, W]"""
        _check_shape("z", z, ("B", self.config.z_dim))
        _check_cameras("mapping cameras", cameras, z.shape[0])
        frames = cameras.shape[1]
        c = cameras.flatten(0, 1) * (self.config.c_scale if self.config.generator_camera else 0.0)
        w = self.backbone.mapping(z.repeat_interleave(frames, dim=0), c)
        if update_w_avg:
            self.backbone.mapping.update_w_avg(w)
        ws: Tensor = self.backbone.mapping.broadcast(w, self.config.num_ws, truncation_psi, truncation_cutoff)
        return cast(Tensor, ws.unflatten(0, (-1, frames)))

    def planes(
        self,
        ws: Tensor,
        z_m: Tensor,
        times: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        generator: ops.Random = None,
    ) -> Tensor:
        """ws [B, T, num_ws, W], z_m [B, z_m_dim] (or one per frame, [B, T, z_m_dim]), times [B, T]
        -> planes [B, T, P, C, H, W]: the temporal tri-planes, one set per frame."""
        b, t = times.shape if times.ndim == 2 else (-1, -1)
        _check_shape("times", times, ("B", "T"))
        _check_shape("ws", ws, (b, t, self.config.num_ws, self.config.w_dim))
        if z_m.ndim == 2:
            _check_shape("z_m", z_m, (b, self.config.z_m_dim))
            z_m = z_m[:, None]
        _check_shape("z_m", z_m, (b, (1, t), self.config.z_m_dim))
        low, high = torch.aminmax(times.detach())
        if not (float(low) >= 0 and float(high) <= 1):
            raise ValueError(
                f"times reach from {float(low):g} to {float(high):g}; give index / (span - 1), in [0, 1]"
            )
        motion_time = (z_m * times[..., None]).flatten(0, 1)  # Eq. 1: z_m t
        image: Tensor = self.backbone.synthesis(
            ws.flatten(0, 1), motion_time, noise_mode, generator, self.compute_dtype
        )
        return image.view(b, t, -1, self.config.plane_features, *image.shape[-2:])

    def render(
        self, planes: Tensor, ws: Tensor, cameras: Tensor, *, rendering_resolution: int | None = None,
        generator: ops.Random = None, deterministic: bool = False, return_xyz: bool = False,
        coarse_jitter: Tensor | None = None, fine_u: Tensor | None = None,
    ) -> Frames:  # fmt: skip
        """planes [B, T, P, C, H, W], ws [B, T, num_ws, W], cameras [B, T, 25] -> `Frames`. Planes do not
        depend on the rendering camera: compute them once and move it."""
        _check_shape(
            "planes", planes, ("B", "T", self.plane_axes.shape[0], self.config.plane_features, "H", "W")
        )
        b, t = planes.shape[:2]
        _check_shape("ws", ws, (b, t, self.config.num_ws, self.config.w_dim))
        _check_cameras("cameras", cameras, b, t)
        side = self.config.rendering.resolution if rendering_resolution is None else rendering_resolution
        if side < 1:
            raise ValueError(f"rendering_resolution is {side}; give 1 or more")
        flat_planes, flat_ws = planes.flatten(0, 1), ws.flatten(0, 1)
        draws = self._ray_draws(b * t, side * side, flat_ws, generator, deterministic, coarse_jitter, fine_u)
        run: Any = self._checkpointed if self.checkpointing and torch.is_grad_enabled() else _call
        trace: Any = run if self.config.rendering.chunk_rays is None else _call  # chunks do it themselves
        features, depth, total, xyz = trace(
            self.trace, flat_planes, cameras.flatten(0, 1), side, *draws, return_xyz
        )
        raw = self.to_img_raw(
            features, flat_ws[:, 0]
        )  # a learned 1 x 1 layer (EG3D: the first three features)
        image = run(self.superresolution, raw, features, flat_ws[:, -1], self.compute_dtype)
        image, raw, depth, total = (x.unflatten(0, (b, t)) for x in (image, raw, depth, total))
        return Frames(image, raw, depth, total, xyz.unflatten(0, (b, t)) if return_xyz else None)

    def trace(
        self,
        planes: Tensor,
        cameras: Tensor,
        side: int,
        jitter: Tensor | None,
        u: Tensor | None,
        return_xyz: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """planes [N, P, C, H, W], cameras [N, 25] -> features [N, C, R, R] in (-1, 1), depth and opacity [N,
        1, R, R], xyz [N, R, R, 3] (or empty)."""
        r = self.config.rendering
        origins, directions = rendering.rays(cameras, side)
        start, end = rendering.ray_limits(origins, directions, r.ray_start, r.ray_end, r.box_warp)
        depths = rendering.stratified_depths(
            start, end, r.samples_coarse, jitter, disparity=r.disparity_sampling
        )
        planes = plane_layout(planes)  # once for all passes
        march: Any = partial(rendering.march, axes=self.plane_axes, box_warp=r.box_warp, decoder=self.decoder,
                             white_background=r.white_background, density_scale=r.density_scale,
                             density_ball=r.density_ball, points=return_xyz)  # fmt: skip
        if r.chunk_rays is not None:
            march = partial(rendering.march_in_chunks, march, r.chunk_rays)
        seen = rendering.Seen(*march(planes, origins, directions, depths, u))
        features = (seen.colour * 2 - 1).transpose(1, 2).unflatten(2, (side, side)).contiguous()
        maps = [x.unflatten(1, (1, side, side)) for x in (seen.depth_within_frame(), seen.weight_total)]
        xyz = seen.points.unflatten(1, (side, side)) if return_xyz else features.new_empty(0)
        return features, maps[0], maps[1], xyz

    def sample(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """planes [B, T, P, C, H, W], points [B, T, M, 3] -> colour features [B, T, M, C], raw density [B, T,
        M, 1]."""
        b, t = planes.shape[:2]
        _check_shape("points", points, (b, t, "M", 3))
        features = sample_planes(
            planes.flatten(0, 1), points.flatten(0, 1), self.plane_axes, self.config.rendering.box_warp
        )
        colour, density = self.decoder(features)
        return colour.unflatten(0, (b, t)), density.unflatten(0, (b, t))

    def density(self, planes: Tensor, points: Tensor) -> Tensor:
        """planes [B, T, P, C, H, W], points [B, T, M, 3] -> raw density [B, T, M, 1] of the volume (before
        softplus; meshes: 10)."""
        r = self.config.rendering
        raw = self.sample(planes, points)[1]
        return rendering.published_density(raw, points, scale=r.density_scale, radius=r.density_ball)

    def _ray_draws(
        self, frames: int, count: int, like: Tensor, random: ops.Random, deterministic: bool,
        jitter: Tensor | None, u: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """Jitter [N, Q, S] of the coarse samples and u [N, Q, F] of the fine ones; None where there is
        none."""
        r = self.config.rendering
        deterministic = deterministic or (not self.training and r.importance_at_eval == "deterministic")
        if jitter is not None:
            _check_shape("coarse_jitter", jitter, (frames, count, r.samples_coarse))
        elif self.training and not deterministic:
            jitter = ops.draw((frames, count, r.samples_coarse), random, like=like)
        if u is not None:
            _check_shape("fine_u", u, (frames, count, r.samples_fine))
        elif r.samples_fine and deterministic:
            u = torch.linspace(0, 1, r.samples_fine, device=like.device, dtype=like.dtype).expand(
                frames, count, -1
            )
        elif r.samples_fine:
            u = ops.draw((frames, count, r.samples_fine), random, like=like)
        return jitter, u

    @staticmethod
    def _checkpointed(function: Any, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _call(function: Any, *args: Any) -> Any:
    return function(*args)


def _check_shape(name: str, x: Tensor, expected: tuple[int | str | tuple[int, ...], ...]) -> None:
    """Numbers must match, a tuple lists the allowed sizes, a letter stands for any size."""
    fits = [
        isinstance(want, str) or (size in want if isinstance(want, tuple) else size == want)
        for size, want in zip(x.shape, expected, strict=False)
    ]
    if len(x.shape) != len(expected) or not all(fits):
        wanted = ", ".join(str(e) for e in expected)
        raise ValueError(f"{name} has shape {list(x.shape)}; give [{wanted}]")


def _check_cameras(name: str, cameras: Tensor, videos: int, frames: int | None = None) -> None:
    _check_shape(name, cameras, (videos, "T" if frames is None else frames, CAMERA_DIM))
    check_cameras(cameras.detach().cpu().numpy())
