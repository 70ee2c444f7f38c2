"""A user's own model of identity: an ONNX file, and what belongs to it in a json file beside it.

    glint_r50.onnx         the network
    glint_r50.onnx.json    {"same_person": 0.5, "same_cluster": 0.5, "std": 128}

Every key may be left out; without the json file all are ArcFace's own. Light: the driver reads them too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from infra import weights
from infra.weights import WeightsError

MOST_BYTES = 1 << 16                 # of the json file
MOST_LEVEL = 10_000

# What a backend takes where no file is named: `arcface-onnx` of `pv3d weights list`. Nobody has pinned it, so
# it counts as a file of your own.
DEFAULTS = {"stages.backends.arcface:ArcFace": "w600k_r50.onnx"}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Facts:
    """What belongs to a network and is not in its file. The defaults are ArcFace's, and the paper's."""

    same_person: float = 0.5                 # cosine: see `stages.backends.IdentityBackend`
    same_cluster: float = 0.5
    mean: Triple = (127.5, 127.5, 127.5)     # levels of 0 to 255; the network gets (RGB - mean) / std
    std: Triple = (127.5, 127.5, 127.5)      # some files want 128
    mirror: bool = False                     # add the embedding of the mirrored face: surer, twice the time


def locate(given: str) -> Path:
    """The file of that absolute path, or of that name in the folders of weights. Raises WeightsError."""
    path = weights.find(given)
    if path is None:
        places = " and ".join(str(folder) for folder in weights.folders())
        raise WeightsError(f"weights: no file {given} in {places}; put it there, or give its absolute path")
    return path


def digest(path: Path) -> str:
    """sha256 (hex) of the network and of the json beside it: of all that decides what comes out."""
    side = beside(path)
    own = weights.digest(path)
    return hashlib.sha256((own + weights.digest(side)).encode()).hexdigest() if side.is_file() else own


def beside(path: Path) -> Path:
    """Where the json file of a network lies."""
    return path.with_name(path.name + ".json")


def read_facts(path: Path) -> Facts:
    """What the json beside the network says. Raises WeightsError: one line with file, key, value and cure."""
    side = beside(path)
    if not side.is_file():
        return Facts()
    try:
        if side.stat().st_size > MOST_BYTES:
            raise ValueError("too long")
        values = json.loads(side.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{side}: is no JSON ({error}); write an object or remove it") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{side}: {str(values)[:40]!r} is no object; write {{\"same_person\": 0.5}}")
    known = [field.name for field in fields(Facts)]
    for key in values:
        if key not in known:
            raise WeightsError(f"{side}: {key!r} is unknown; known: {', '.join(known)}")
    return Facts(**{key: _checked(side, key, value) for key, value in values.items()})


def _checked(side: Path, key: str, value: Any) -> Any:
    if key == "mirror":
        if not isinstance(value, bool):
            raise WeightsError(f"{side}: mirror: {value!r} is neither true nor false")
        return value
    numbers = value if key in ("mean", "std") and isinstance(value, list) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        wanted = "a number, or three for RGB" if key in ("mean", "std") else "a number"
        raise WeightsError(f"{side}: {key}: {value!r} is not {wanted}")
    if key in ("same_person", "same_cluster") and not -1 < value < 1:
        raise WeightsError(f"{side}: {key}: {value} is no cosine to decide by; give one between -1 and 1")
    if not all(abs(n) < MOST_LEVEL for n in numbers):                  # nor may it be nan
        raise WeightsError(f"{side}: {key}: {str(value)[:40]} is out of range; give below {MOST_LEVEL}")
    if key == "std" and min(numbers) <= 0:
        raise WeightsError(f"{side}: std: {value} is not positive; give the divisor, such as 127.5")
    return tuple(float(n) for n in numbers) if key in ("mean", "std") else float(value)
