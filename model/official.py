"""Read a checkpoint of the authors' code (bytedance/pv3d) without running anything that is in it.
Such a file is one torch archive: "model" holds the state dicts of four networks behind prefixes, "config" a
plain dictionary, and optimiser states that we leave. Sizes are read off the tensors; names and shapes are
then checked one by one against our networks, which carry the same names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import (
    DiscriminatorConfig,
    ModelConfig,
    MotionConfig,
    Recipe,
    RenderingConfig,
    SuperResolutionConfig,
    Variant,
)
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator

State = dict[str, Tensor]

# What torch raises on a file that is damaged, or holds more than tensors.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, pickle.UnpicklingError,
)

# Prefix in the file -> our name of the network.
NETWORKS = {
    "generator_ema": "generator_ema",
    "generator": "generator",
    "img_discriminator": "image_discriminator",
    "vid_discriminator": "video_discriminator",
}


@dataclass
class OfficialCheckpoint:
    """What was read: four state dicts that load strictly into our networks, and how they were configured."""

    variant: Variant
    networks: dict[str, State]
    """generator, generator_ema, image_discriminator, video_discriminator"""
    step: int
    samples: int
    left_over: list[str] = field(default_factory=list)
    """Entries of the file that no network uses (optimisers, counters, pl_mean)."""
    assumed: list[str] = field(default_factory=list)
    """Settings that the file does not name, so that the published ones were taken."""

    def report(self) -> str:
        """A few lines for the user."""
        lines = [
            f"{name}: {len(state)} tensors, every name and shape as expected"
            for name, state in self.networks.items()
        ]
        lines.append(f"left over: {', '.join(self.left_over) or 'nothing'}")
        lines.append(f"not in the file, taken as published: {', '.join(self.assumed) or 'nothing'}")
        return "\n".join(lines)


def read_official(path: str | Path) -> OfficialCheckpoint:
    """Read and check `path`. Raises `ValueError` for a truncated or foreign file, or one that our networks
    differ from."""
    content = _load(Path(path))
    networks, left_over = _split(content["model"], path)
    left_over += sorted(str(key) for key in content if key not in ("model", "config"))
    settings = content.get("config")
    variant, assumed = _variant(networks, settings if isinstance(settings, dict) else {}, path)
    _check(networks, variant.model, path)
    step, samples = (_count(content, key, path) for key in ("num_updates", "num_samples"))
    return OfficialCheckpoint(variant, networks, step, samples, left_over, assumed)


def _count(content: dict[str, Any], key: str, path: str | Path) -> int:
    try:
        count = int(content.get(key) or 0)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        count = -1
    if not 0 <= count < 1 << 53:
        raise ValueError(f"{path}: {key} is {str(content[key])[:40]!r}, no count; give an unchanged .ckpt")
    return count


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the authors' .ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        reason = _why(error)
        raise ValueError(
            f"{path} is truncated or no checkpoint of tensors alone ({reason}); download it again"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise ValueError(
            f"{path} has no 'model' table of tensors; give a .ckpt of bytedance/pv3d (models/model_<n>.ckpt)"
        )
    return content


def _why(error: BaseException) -> str:
    """One line. PyTorch's advice for a pickle that names more than tensors is to run it; that is left out."""
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError):
        return f"it names {named[1]}" if named else "its pickle cannot be read"
    return text[:200] or type(error).__name__


def _split(model: Mapping[str, Any], path: str | Path) -> tuple[dict[str, State], list[str]]:
    """State dicts by our names; what belongs to none."""
    networks: dict[str, State] = {ours: {} for ours in NETWORKS.values()}
    left_over = []
    for full_name, value in model.items():
        prefix, _, name = str(full_name).removeprefix("module.").partition(".")
        name = name.removeprefix("module.")
        if prefix in NETWORKS and isinstance(value, Tensor):
            if not _is_plain(value):
                raise ValueError(f"{path}: {full_name} is no plain tensor; give an unchanged .ckpt")
            networks[NETWORKS[prefix]][name] = value
        else:
            left_over.append(f"model.{full_name}")
    absent = [theirs for theirs, ours in NETWORKS.items() if not networks[ours]]
    if absent:
        raise ValueError(
            f"{path} holds no {', '.join(absent)}; give a whole training checkpoint of bytedance/pv3d"
        )
    return networks, left_over


def _is_plain(value: Tensor) -> bool:
    """Floating point numbers that are all in the file: a few bytes may claim to be any shape."""
    if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _variant(
    networks: dict[str, State], settings: dict[str, Any], path: str | Path
) -> tuple[Variant, list[str]]:
    g, d_img, d_vid = (networks[n] for n in ("generator", "image_discriminator", "video_discriminator"))
    named = dict(_leaves(settings))
    assumed: list[str] = []

    def setting(key: str, default: Any) -> Any:
        if key not in named:
            assumed.append(f"{key} {default}")
        return named.get(key, default)

    try:
        blocks = [n.split(".")[2] for n in g if n.startswith("backbone.synthesis.b") and "torgb.bias" in n]
        sides = sorted(int(block[1:]) for block in blocks)
        d_sides = sorted(int(n.split(".")[0][1:]) for n in d_img if n.endswith(".skip.weight"))
        w_dim = g["backbone.mapping.w_avg"].shape[0]
        planes, decoder_hidden = (
            g["backbone.synthesis.b4.torgb.bias"].shape[0],
            g["decoder.net.0.bias"].shape[0],
        )
        motion = [n for n in g if n.endswith("motion_time_fuser.affine.weight")]
        layers = [n for n in g if n.startswith("backbone.mapping.fc") and n.endswith(".bias")]
        d_layers = [n for n in d_img if n.startswith("mapping.fc") and n.endswith(".bias")]
        top, d_top = sides[-1], d_sides[-1]
        sr = tuple(g[f"superresolution.block{i}.conv1.bias"].shape[0] for i in (0, 1))
        image_channels = d_vid[f"b{d_top}.fromrgb.weight"].shape[1]
        z_m_dim = g[motion[0]].shape[1] if motion else w_dim
        config = ModelConfig(
            img_resolution=d_top, z_dim=g["backbone.mapping.fc0.weight"].shape[1] - w_dim, z_m_dim=z_m_dim,
            w_dim=w_dim, mapping_layers=len(layers), plane_resolution=top, plane_features=planes // 3,
            channel_base=g[f"backbone.synthesis.b{top}.conv1.bias"].shape[0] * top,
            channel_max=g["backbone.synthesis.b4.conv1.bias"].shape[0], decoder_hidden=decoder_hidden,
            plane_axes="eg3d_compat", c_scale=float(setting("c_scale", 1.0)),
            motion=MotionConfig(blocks=len(motion)),
            superresolution=SuperResolutionConfig(input_resolution=d_top // 4, channels=sr),
            rendering=RenderingConfig(
                resolution=int(setting("rendering_resolution", 64)),
                samples_coarse=int(setting("depth_resolution", 48)),
                samples_fine=int(setting("depth_resolution_importance", 48)),
                ray_start=float(setting("ray_start", 2.25)), ray_end=float(setting("ray_end", 3.3)),
                box_warp=float(setting("box_warp", 1.0)), white_background=bool(setting("white_back", False)),
            ),
            discriminator=DiscriminatorConfig(
                channel_base=d_img[f"b{d_top}.conv0.bias"].shape[0] * d_top,
                channel_max=d_img["b4.conv.bias"].shape[0],
                mapping_layers=len(d_layers), frames=(image_channels + 1) // 4,
            ),
        )  # fmt: skip
        recipe = Recipe(
            lambda_img=float(setting("loss_img_weight", 1.0)),
            lambda_vid=float(setting("loss_vid_weight", 0.65)),
            lambda_reg=float(setting("density_reg", 0.6)), r1_gamma=float(setting("r1_gamma", 2.0)),
        )  # fmt: skip
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} is of another network: {error} is missing; give a .ckpt of bytedance/pv3d"
        ) from None
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} has a name or a setting that cannot be ({error}); give an unchanged .ckpt"
        ) from None
    config = replace(
        config, superresolution=replace(config.superresolution, input_resolution=_sr_input(g, config))
    )
    return Variant(name=f"official_{d_top}", model=config, recipe=recipe), assumed


def _sr_input(g: State, config: ModelConfig) -> int:
    """Input side of the super-resolution: its first block doubles it in the published 512 model; the 256 and
    128 models (fixed widths 128 and 64) keep it."""
    half = g["superresolution.block0.conv1.noise_const"].shape[0]
    return half if config.img_resolution < 512 and config.superresolution.channels == (128, 64) else half // 2


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every plain (key, value) of a nested dictionary."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, int | float | str):
            yield str(key), value


def _check(networks: dict[str, State], config: ModelConfig, path: str | Path) -> None:
    with torch.device("meta"):
        generator, d_img, d_vid = Generator(config), ImageDiscriminator(config), VideoDiscriminator(config)
    ours: dict[str, nn.Module] = {"generator": generator, "generator_ema": generator,
                                  "image_discriminator": d_img,
                                  "video_discriminator": d_vid}  # fmt: skip
    faults = []
    for name, network in ours.items():
        expected, found = network.state_dict(), networks[name]
        faults += [f"{name} lacks {key}" for key in expected if key not in found]
        faults += [f"{name} has an unknown {key}" for key in found if key not in expected]
        for key in expected.keys() & found.keys():
            if expected[key].shape != found[key].shape:
                shapes = f"{list(found[key].shape)}, not {list(expected[key].shape)}"
                faults.append(f"{name} {key} has shape {shapes}")
    if faults:
        shown = "; ".join(sorted(faults)[:5])
        raise ValueError(
            f"{path} differs from PV3D in {len(faults)} places: {shown}; give an unchanged .ckpt"
        )
