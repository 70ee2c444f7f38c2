"""Every size, switch and loss weight of PV3D in one typed tree, and the named variants.
A variant is a plain function that returns a `Variant`: `tiny()`, `mid_128()`, `voxceleb_512()`,
`celebvhq_512()`, `talkinghead_512()` and their 48-frame forms. Nothing else in `model/` holds a size.
This file needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from model.plain import from_dict, require, suggest, to_dict, with_changes
from model.recipe import Recipe

__all__ = [
    "DiscriminatorConfig", "ModelConfig", "MotionConfig", "Recipe", "RenderingConfig",
    "SuperResolutionConfig", "Variant", "from_dict", "to_dict", "variant", "with_changes",
]  # fmt: skip

PlaneAxes = tuple[str | tuple[tuple[float, ...], ...], ...]

MOST_PIXELS, MOST_WIDTH = 4096, 2048         # far beyond the paper's: 512 pixels, 512 channels

# Each plane is named by the two world axes that become its width and height.
NAMED_PLANE_AXES: dict[str, tuple[str, ...]] = {
    "eg3d_compat": ("xy", "xz", "zx"),  # as published: the third plane repeats the second (NVlabs/eg3d#67)
    "orthogonal": ("xy", "xz", "zy"),
}


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """The K motion layers (paper section 3.2, Eq. 1 and 2; ablations of Tables 2a and 2b)."""

    blocks: int = 4
    """K: the motion enters in the first K resolution blocks. 2 early, 4 middle, 7 late (Table 2a)."""
    fusion: Literal["add", "learned"] = "add"
    """`learned` scales each motion feature by a trained scalar (Table 2a, "learned")."""
    code: Literal["z_m", "z_a"] = "z_m"
    """`z_a` drives the motion by the appearance code (Table 2b, no motion code)."""
    operator: Literal["modconv", "mlp"] = "modconv"
    """`mlp` replaces the modulated convolution by a per-pixel MLP over [f*, w_m] (Table 2b)."""


@dataclass(frozen=True, kw_only=True)
class RenderingConfig:
    """Rays, samples and compositing (paper section 3.4, Eq. 5 and 6)."""

    resolution: int = 64
    """R: side of the raw rendered image (32, 64 or 128 in Table 3b)."""
    samples_coarse: int = 48
    samples_fine: int = 48
    """Importance samples; 0 renders the coarse ones alone."""
    ray_start: float | None = 2.25
    ray_end: float | None = 3.3
    """Both None: the limits are where the ray enters and leaves the box."""
    box_warp: float = 1.0
    """Side of the cube that the planes cover, in world units."""
    disparity_sampling: bool = False
    white_background: bool = False
    density_ball: float = 0.0
    """Radius of the ball, in front of a wall, that the decoder's density is added to, world units; 0 as
    published: none. A face is near a ball of 0.26, so that short trainings turn heads and not pictures."""
    density_scale: float = 1.0
    """Density per world unit of the decoder's density 1. 1 as published: an untrained volume is a fog that
    lets three quarters of the light through, and surfaces take long to form. With 20 it is opaque from the
    start."""
    importance_at_eval: Literal["deterministic", "random"] = "deterministic"
    """The official code draws at evaluation too, so its frames flicker; ours do not unless asked."""
    chunk_rays: int | None = None
    """Rays rendered at once, of one frame; None: all of all frames. A chunk is computed again in the backward
    pass, so that the renderer's memory is that of one chunk. Changes no result."""


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig:
    """Feature image -> final frame: two blocks; the first enlarges only if output = 4 x input."""

    input_resolution: int = 128
    channels: tuple[int, ...] = (256, 128)
    conv_clamp: float | None = 256.0


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """D_img and D_vid (paper section 3.3, Eq. 3 and 4; ablations of Tables 2d and 3a)."""

    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    camera_contrast: float = 1.0
    """Enlarges what distinguishes a camera from the frontal one, before the mapping networks of D_img and
    D_vid. 1 as published: 8 degrees of yaw then change 6 % of their input, and poses are learnt late."""
    conv_clamp: float | None = 256.0
    image: bool = True
    """False removes D_img (Table 3a)."""
    video: bool = True
    """False removes D_vid (Table 3a)."""
    frames: int = 2
    """n: frames that D_vid sees, with n-1 time differences and n cameras (2 in the paper; patent [0060],
    [0071])."""
    video_cameras: bool = True
    """False: D_vid without cameras (Table 2d)."""
    video_time_difference: bool = True
    """False: D_vid without the time-difference planes (Table 2d)."""
    minibatch_group_image: int = 4
    minibatch_group_video: int = 2
    """Items per minibatch-std group. 2 is what the authors' 2 videos per GPU give, on any number of
    workers."""
    frame_order: Literal["time_major", "video_major"] = "time_major"
    """Order of the frames in D_img's batch. Only the minibatch-std groups depend on it: `time_major` keeps
    them the same on any number of workers; `video_major` is the official order (equal at 2 videos per
    worker)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of the three networks."""

    img_resolution: int
    frames_span: int = 16
    """Length of the window that t in [0, 1] covers, in frames (16, or 48 in appendix A.5)."""
    z_dim: int = 512
    z_m_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01
    w_avg_beta: float = 0.998
    c_scale: float = 1.0
    """Multiplies the camera before the mapping network."""
    camera_conditioning: Literal["all", "non", "map", "mapt"] = "mapt"
    """Which camera the mapping network sees (Table 2c): `mapt` each frame's own in training and one shared by
    all frames at inference; `map` shared always; `non` own always; `all` shared in mapping and in
    rendering."""
    generator_camera: bool = True
    """False: the generator's mapping sees no camera (Table 3c)."""
    channel_base: int = 32768
    channel_max: int = 512
    plane_resolution: int = 256
    plane_features: int = 32
    plane_axes: Literal["eg3d_compat", "orthogonal"] | PlaneAxes = "eg3d_compat"
    """Or any list of planes: "xy" (width axis, height axis), or a 2 x 3 matrix; four of them are the patent's
    quad-plane ([0024])."""
    decoder_hidden: int = 64
    motion: MotionConfig = field(default_factory=MotionConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    superresolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    @property
    def discriminator_frames(self) -> int:
        return self.discriminator.frames

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        return tuple(2**i for i in range(2, int(math.log2(self.plane_resolution)) + 1))

    @property
    def num_ws(self) -> int:
        """One w per convolution of the backbone and one for its last to-RGB layer."""
        return 2 * len(self.block_resolutions)

    @property
    def plane_matrices(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """One 2 x 3 matrix per plane: (x, y, z) -> (width, height)."""
        axes = NAMED_PLANE_AXES[self.plane_axes] if isinstance(self.plane_axes, str) else self.plane_axes
        unit = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
        return tuple(tuple(unit[a] for a in plane) if isinstance(plane, str) else plane for plane in axes)

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    def __post_init__(self) -> None:
        d, r, s = self.discriminator, self.rendering, self.superresolution
        for name in ("img_resolution", "plane_resolution"):
            value = getattr(self, name)
            require(value >= 8 and value & (value - 1) == 0, name, value, "a power of two, 8 or more")
        sizes = ("z_dim", "z_m_dim", "w_dim", "mapping_layers", "channel_base", "channel_max",
                 "plane_features", "decoder_hidden")  # fmt: skip
        for name in sizes:
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        self._check_most()
        require(self.frames_span >= 2, "frames_span", self.frames_span, "2 frames or more")
        blocks = len(self.block_resolutions)
        require(0 <= self.motion.blocks <= blocks, "motion.blocks", self.motion.blocks,
                 f"0 to {blocks}, the blocks at plane_resolution {self.plane_resolution}")  # fmt: skip
        require(self.motion.code == "z_m" or self.z_dim == self.z_m_dim, "motion.code", self.motion.code,
                 f"'z_m', or z_m_dim equal to z_dim {self.z_dim}")  # fmt: skip
        named = not isinstance(self.plane_axes, str) or self.plane_axes in NAMED_PLANE_AXES
        require(
            named, "plane_axes", self.plane_axes, f"one of {sorted(NAMED_PLANE_AXES)} or a list of planes"
        )
        if not isinstance(self.plane_axes, str):
            require(len(self.plane_axes) >= 1, "plane_axes", self.plane_axes, "at least one plane")
            for plane in self.plane_axes:
                ok = (len(plane) == 2 and set(plane) <= set("xyz") if isinstance(plane, str)
                      else len(plane) == 2 and all(len(row) == 3 for row in plane))  # fmt: skip
                require(ok, "plane_axes", plane, "two letters of x, y, z such as 'xz', or a 2 x 3 matrix")
        require(r.resolution >= 1, "rendering.resolution", r.resolution, "1 or more")
        require(r.samples_coarse >= 2, "rendering.samples_coarse", r.samples_coarse, "2 or more")
        require(r.chunk_rays is None or r.chunk_rays >= 1, "rendering.chunk_rays", r.chunk_rays,
                 "1 or more, or null for all rays at once")  # fmt: skip
        require(r.samples_fine >= 0, "rendering.samples_fine", r.samples_fine, "0 or more")
        require(r.samples_fine == 0 or r.samples_coarse >= 4, "rendering.samples_coarse", r.samples_coarse,
                 "4 or more with importance samples, or samples_fine 0")  # fmt: skip
        require((r.ray_start is None) == (r.ray_end is None), "rendering.ray_end", r.ray_end,
                 "a number with a numeric ray_start; None with None (limits from the box)")  # fmt: skip
        if r.ray_start is not None and r.ray_end is not None:
            require(
                0 < r.ray_start < r.ray_end,
                "rendering.ray_end",
                r.ray_end,
                f"greater than ray_start {r.ray_start} > 0",
            )
        require(r.density_ball >= 0, "rendering.density_ball", r.density_ball, "0 or more")
        require(r.density_scale > 0, "rendering.density_scale", r.density_scale, "greater than 0")
        require(r.box_warp > 0, "rendering.box_warp", r.box_warp, "a positive side length in world units")
        require(
            len(s.channels) == 2 and min(s.channels) >= 1,
            "superresolution.channels",
            s.channels,
            "two widths",
        )
        require(self.img_resolution in (2 * s.input_resolution, 4 * s.input_resolution),
                 "superresolution.input_resolution", s.input_resolution,
                 f"img_resolution / 2 or / 4 of {self.img_resolution}")  # fmt: skip
        require(d.frames >= 2, "discriminator.frames", d.frames, "2 or more")
        require(
            d.frames <= self.frames_span,
            "discriminator.frames",
            d.frames,
            f"at most frames_span {self.frames_span}",
        )
        require(d.image or d.video, "discriminator.video", d.video, "at least one of image and video True")
        require(
            d.camera_contrast > 0, "discriminator.camera_contrast", d.camera_contrast, "greater than 0"
        )
        for name in ("minibatch_group_image", "minibatch_group_video", "mapping_layers"):
            require(getattr(d, name) >= 1, f"discriminator.{name}", getattr(d, name), "1 or more")

    def _check_most(self) -> None:
        """A file from a stranger may hold any numbers: those that no memory would bear are refused here,
        before a network is made of them."""
        r = self.rendering
        most = {
            "img_resolution": MOST_PIXELS, "plane_resolution": MOST_PIXELS, "z_dim": MOST_WIDTH,
            "z_m_dim": MOST_WIDTH, "w_dim": MOST_WIDTH, "channel_max": MOST_WIDTH,
            "plane_features": MOST_WIDTH, "decoder_hidden": MOST_WIDTH,
            "mapping_layers": 64, "frames_span": 1 << 20,
        }  # fmt: skip
        found = {name: (getattr(self, name), limit) for name, limit in most.items()} | {
            "rendering.resolution": (r.resolution, MOST_PIXELS // 4),
            "rendering.samples_coarse": (r.samples_coarse, 1024),
            "rendering.samples_fine": (r.samples_fine, 1024),
            "superresolution.channels": (max(self.superresolution.channels, default=0), MOST_WIDTH),
            "the number of plane_axes": (len(self.plane_axes), 64),
        }
        for name, (value, limit) in found.items():
            require(value <= limit, name, value, f"{limit} or less")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A name, the networks and how they are trained."""

    name: str
    model: ModelConfig
    recipe: Recipe


def tiny() -> Variant:
    """64 x 64 frames for tests, the demo and the viewer: seconds per update on two CPU cores."""
    model = ModelConfig(
        img_resolution=64, z_dim=64, z_m_dim=64, w_dim=64, channel_base=2048, channel_max=64,
        plane_resolution=64, plane_features=16, plane_axes="orthogonal", decoder_hidden=32,
        rendering=RenderingConfig(resolution=32, samples_coarse=12, samples_fine=12),
        superresolution=SuperResolutionConfig(input_resolution=32, channels=(32, 16)),
        discriminator=DiscriminatorConfig(
            channel_base=1024, channel_max=64, mapping_layers=4, minibatch_group_image=2
        ),
    )  # fmt: skip
    recipe = Recipe(
        batch=4, updates=2000, lambda_reg=0.25, r1_gamma=1.0, resolution_initial=32, blur_sigma=2.0,
        blur_fade_kvideos=8.0, blur_fade_by="global", swap_fade_kvideos=20.0, fake_time="grid",
        fake_camera_time="matched", flip_fake_cameras=True,
    )  # fmt: skip
    return Variant(name="tiny", model=model, recipe=recipe)


def mid_128() -> Variant:
    """128 x 128 frames, the published design with smaller widths: for one consumer GPU or a patient CPU."""
    model = ModelConfig(
        img_resolution=128, channel_base=8192, channel_max=256, plane_resolution=128,
        rendering=RenderingConfig(resolution=32, samples_coarse=24, samples_fine=24),
        superresolution=SuperResolutionConfig(input_resolution=32, channels=(128, 64)),
        discriminator=DiscriminatorConfig(channel_base=8192, channel_max=256),
    )  # fmt: skip
    return Variant(name="mid_128", model=model, recipe=Recipe(resolution_initial=32, r1_gamma=1.0))


def voxceleb_512() -> Variant:
    """The paper's VoxCeleb model (appendix A.1)."""
    recipe = Recipe()
    return Variant(name="voxceleb_512", model=ModelConfig(img_resolution=512), recipe=recipe)


def celebvhq_512() -> Variant:
    """The paper's CelebV-HQ model (appendix A.1)."""
    recipe = Recipe(lambda_reg=0.05, r1_gamma=4.0)
    return Variant(name="celebvhq_512", model=ModelConfig(img_resolution=512), recipe=recipe)


def talkinghead_512() -> Variant:
    """The paper's TalkingHead-1KH model (appendix A.1)."""
    recipe = Recipe(lambda_reg=0.5, r1_gamma=2.0)
    return Variant(name="talkinghead_512", model=ModelConfig(img_resolution=512), recipe=recipe)


def tiny_48() -> Variant:
    return _with_span(tiny(), 48)


def mid_128_48() -> Variant:
    return _with_span(mid_128(), 48)


def voxceleb_512_48() -> Variant:
    """48-frame windows (appendix A.5, "Longer-term video synthesis")."""
    return _with_span(voxceleb_512(), 48)


def celebvhq_512_48() -> Variant:
    return _with_span(celebvhq_512(), 48)


def talkinghead_512_48() -> Variant:
    return _with_span(talkinghead_512(), 48)


VARIANTS = {make.__name__: make for make in (
    tiny, mid_128, voxceleb_512, celebvhq_512, talkinghead_512,
    tiny_48, mid_128_48, voxceleb_512_48, celebvhq_512_48, talkinghead_512_48,
)}  # fmt: skip


def variant(name: str) -> Variant:
    """The variant of that name; an unknown one is answered with the nearest."""
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} does not exist; {suggest(name, VARIANTS)}")
    return VARIANTS[name]()


def _with_span(base: Variant, frames: int) -> Variant:
    return replace(base, name=f"{base.name}_{frames}", model=replace(base.model, frames_span=frames))
