"""A portrait as numbers: what it looks like, how it moves, from where it is seen. Everything else is a view.

    NAME.safetensors    ws, z_m, times, cameras, and of an inversion `target`: the frames it was made from
    NAME.json           schema, sha256 of the model and of the tensors, where it came from, the loss curve

`pv3d invert` writes one; a seed is one, too (`pipelines.api.Model.sample`). T is the number of frames.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1
SUFFIX = ".safetensors"
TENSORS = ("ws", "z_m", "times", "cameras")
MOST_BYTES = 1 << 32
MOST_FRAMES = 10_000
MOST_SCALE = 100.0

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Latent:
    """One portrait under one model."""

    ws: Floats
    """[num_ws, w_dim], or [T, num_ws, w_dim] for a model whose mapping network sees every camera"""
    z_m: Floats
    """[T, z_m_dim], or [1, z_m_dim] where all frames share a motion code"""
    times: Floats
    """[T] in [0, 1]"""
    cameras: Floats
    """[T, 25], the view of each frame"""
    model: str
    """sha256 of the generator's weights"""
    target: NDArray[np.uint8] | None = None
    """[T, H, W, 3] RGB, aligned: what was inverted"""
    about: dict[str, Any] = field(default_factory=dict)
    """JSON values: "source", "model_name", "settings", "psnr", "curve", ..."""

    def __len__(self) -> int:
        return len(self.times)

    def save(self, path: Path) -> Path:
        """Write NAME.safetensors and then NAME.json, each whole or not at all; returns the first."""
        from safetensors.numpy import save

        path = tensors_path(path)
        tensors: dict[str, NDArray[Any]] = {
            name: np.asarray(getattr(self, name), np.float32) for name in TENSORS
        }
        if self.target is not None:
            tensors["target"] = self.target
        data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        card = {
            **self.about, "schema": SCHEMA, "model": self.model, "frames": len(self),
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        text = json.dumps(card, indent=1, sort_keys=True, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        write_whole(path.with_suffix(".json"), text.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """`path`: either of the two files. Raises ValueError of one line for what is no sound latent."""
        from safetensors import SafetensorError

        file = tensors_path(Path(path).expanduser())
        try:
            for one in (file, file.with_suffix(".json")):
                if one.stat().st_size > MOST_BYTES or not (one.is_file() or one.is_dir()):
                    raise ValueError(f"{one.name} is no file of up to {MOST_BYTES:,} bytes")
            data = file.read_bytes()
            card = json.loads(file.with_suffix(".json").read_text("utf-8"))
            if not isinstance(card, dict) or card.get("schema") != SCHEMA:
                raise ValueError(f"its json is not of schema {SCHEMA}")
            if card.get("sha256") != hashlib.sha256(data).hexdigest():
                raise ValueError("its json belongs to other tensors")
            tensors = _loaded(data)
            _check(tensors)
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise ValueError(f"latent {path}: no {missing}; `pv3d invert` writes both") from None
        except (SafetensorError, ValueError, RecursionError) as error:
            cause = " ".join(str(error).split())[:200]
            raise ValueError(f"latent {path}: is damaged or none ({cause}); invert again") from None
        known = ("schema", "model", "frames", "sha256")
        about = {name: value for name, value in card.items() if name not in known}
        target = tensors.get("target")
        return cls(
            **{name: tensors[name] for name in TENSORS}, model=str(card.get("model")),
            target=target, about=about,
        )  # fmt: skip

    def check_model(self, sha256: str, name: str) -> None:
        """Raise ValueError unless the latent belongs to the model of that hash."""
        if self.model != sha256:
            own = self.about.get("model_name") or "unknown"
            raise ValueError(
                f"the latent is of another model ({own}, {self.model[:12]}), not of {name} ({sha256[:12]}); "
                "give that model, or invert again"
            )

    def with_motion(self, z_m: Floats, times: Floats, cameras: Floats | None = None) -> Latent:
        """The same portrait in other motion, from the cameras given or those it has. Raises ValueError when
        these are fewer than the frames."""
        count = len(times)
        if cameras is None:
            cameras = stretched(self.cameras, count)
        ws = self.ws if self.ws.ndim == 2 else stretched(self.ws, count)
        return replace(self, ws=ws, z_m=z_m, times=times, cameras=cameras, target=None)

    def scaled(self, factor: float) -> Latent:
        """Its own motion, `factor` times as strong: 0 stands still. Raises ValueError for more than
        MOST_SCALE."""
        if not abs(factor) <= MOST_SCALE:
            raise ValueError(f"--scale {factor:g}: give a number from -{MOST_SCALE:g} to {MOST_SCALE:g}")
        return self.with_motion(self.z_m * np.float32(factor), self.times, self.cameras)

    def driven_by(self, driving: Latent) -> Latent:
        """This portrait in the motion of another latent of the same model, from its own first view."""
        if driving.model != self.model:
            raise ValueError(
                f"the driving latent is of another model ({driving.model[:12]}) than this one "
                f"({self.model[:12]}); invert both with one"
            )
        still = np.repeat(self.cameras[:1], len(driving), axis=0)
        return self.with_motion(driving.z_m, driving.times, still)


def stretched(rows: Floats, count: int) -> Floats:
    """[T, ...] -> [count, ...]: the first so many, or the last repeated."""
    index = np.minimum(np.arange(count), len(rows) - 1)
    return rows[index]


def tensors_path(path: Path) -> Path:
    """NAME.safetensors of NAME, NAME.json or itself. Raises ValueError where there is no name."""
    if not path.name:
        raise ValueError(f"{str(path)!r} is no name of a latent; give a file's")
    if path.suffix in (SUFFIX, ".json"):
        return path.with_suffix(SUFFIX)
    return path.with_name(path.name + SUFFIX)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file; after a crash it is the old one or the new one. Raises ValueError for a folder that
    takes no files."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: cannot be written there; choose another place") from None
    except OSError as error:
        error.filename = error.filename or str(path)         # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _loaded(data: bytes) -> dict[str, NDArray[Any]]:
    """Raises ValueError for kinds of numbers that numpy does not have, and SafetensorError."""
    from safetensors.numpy import load

    try:
        return load(data)
    except KeyError as error:
        raise ValueError(f"it holds {error.args[0]}, not float32") from None


def _check(tensors: dict[str, NDArray[Any]]) -> None:
    """Raises ValueError unless the tensors are those of a latent."""
    from model.camera import check_cameras

    if missing := [name for name in TENSORS if name not in tensors]:
        raise ValueError(f"it has no {missing[0]}")
    if wrong := [name for name in TENSORS if tensors[name].dtype != np.float32]:
        raise ValueError(f"its {wrong[0]} is {tensors[wrong[0]].dtype}, not float32")
    count = tensors["times"].shape[0] if tensors["times"].ndim == 1 else 0
    if count > MOST_FRAMES:
        raise ValueError(f"it has {count:,} frames; {MOST_FRAMES:,} are the most")
    fits = {
        "ws": tensors["ws"].ndim == 2 or (tensors["ws"].ndim == 3 and len(tensors["ws"]) == count),
        "z_m": tensors["z_m"].ndim == 2 and len(tensors["z_m"]) in (1, count),
        "times": count >= 1 and bool(((tensors["times"] >= 0) & (tensors["times"] <= 1)).all()),
        "cameras": tensors["cameras"].shape == (count, 25),
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"its {wrong[0]} has shape {list(tensors[wrong[0]].shape)} or numbers out of range")
    if not all(np.isfinite(tensors[name]).all() for name in TENSORS):
        raise ValueError("it has numbers that are not finite")
    target = tensors.get("target")
    if target is not None and (
        target.dtype != np.uint8 or target.ndim != 4 or len(target) != count or target.shape[3] != 3
    ):
        raise ValueError("its target is not uint8 [T, H, W, 3]")
    check_cameras(tensors["cameras"])
