"""The one record that travels, and its data dictionary.

A `Clip` starts as a whole listed video (`frame_times_s` is None), and becomes one unbroken shot of one
person when it is cut. It holds text, numbers and small arrays only: pixels stay in files and are decoded by
the stage that needs them, so that a record costs kilobytes wherever it travels.

T is the number of output frames of the clip, at `fps`; pixel coordinates are x right, y down, and the
centre of the top left pixel is (0, 0).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.json_text import encoder

Array = NDArray[Any]


@dataclass
class Clip:
    """See the comment of each field: dtype, shape, unit, and the stage that writes it."""

    # --- the source: what was listed -----------------------------------------------------------------
    id: str                                  # unit id, [A-Za-z0-9_-]+, unique; a stage that cuts extends it
    source: str                              # the video as the list names it; an address without its secrets
    video: str                               # where its file is: an absolute path, a URL, or "store:<key>"
    fingerprint: str = ""                    # changes when the file changes (size and time, or a hash)
    dataset: str = ""                        # which list it came from
    licence: str = "unknown"                 # licence of the footage, as listed
    listed: dict[str, Any] = field(default_factory=dict)  # the list's own row, JSON values

    # --- shots: the cut ------------------------------------------------------------------------------
    fps: float = 0.0                         # output frames per second
    width: int = 0                           # px, of the source frame as displayed (rotation applied)
    height: int = 0                          # px
    frame_times_s: Array | None = None       # float64 [T], s: presentation time in the source

    # --- faces: the person ---------------------------------------------------------------------------
    face_boxes: Array | None = None          # float32 [T, 4], source px: left, top, right, bottom
    landmarks: Array | None = None           # float32 [T, 68, 2], source px, iBUG order, as detected
    mesh: Array | None = None                # float32 [T, M, 2], source px: all points of a backend with more
    # A mesh is megabytes: the stage that reads one lets it go, and later clips are small again.
    landmark_backend: str = ""               # what found them; where its points lie on a head belongs to it

    # --- smooth --------------------------------------------------------------------------------------
    smooth_landmarks: Array | None = None    # float32 [T, 68, 2], source px, low-passed over time
    smooth_mesh: Array | None = None         # float32 [T, M, 2], source px, as `mesh`

    # --- crop: the training square -------------------------------------------------------------------
    crop_transforms: Array | None = None     # float64 [T, 2, 3]: source px (x, y, 1) -> crop px
    crop_size: int = 0                       # px, side of the square
    padded_fraction: float = 0.0             # largest share of a crop that lies outside the source frame
    aligned: str = ""                        # key of a tar of T JPEG members "0000.jpg" ... in the store

    # --- cameras -------------------------------------------------------------------------------------
    cameras: Array | None = None             # float32 [T, 25]: camera_to_world 4x4, intrinsics 3x3, row-major

    # --- identity ------------------------------------------------------------------------------------
    embeddings: Array | None = None          # float32 [S, D], unit length, of every `embedding_step`-th frame
    embedding_step: int = 0
    embedding_mean: Array | None = None      # float32 [D], unit length: their mean; all a balance needs
    embedding_backend: str = ""              # what made them: an import path, and of its model:
    embedding_model: dict[str, Any] = field(default_factory=dict)  # file, sha256, metric, thresholds
    verification: dict[str, float] = field(default_factory=dict)  # similarities and noisy-frame count
    identity: str = ""                       # listed label, or the pseudo-identity of the balance

    # --- shards --------------------------------------------------------------------------------------
    shard: str = ""                          # key of the manifest of the shard that holds the clip

    extra: dict[str, Any] = field(default_factory=dict)  # JSON values of one stage; read by two -> a field

    @property
    def is_cut(self) -> bool:
        """Whether this is a clip, rather than a whole listed video."""
        return self.frame_times_s is not None

    @property
    def frame_count(self) -> int:
        """T. Raises ValueError before the cut."""
        if self.frame_times_s is None:
            raise ValueError(f"{self.id}: not cut yet; stages.shots must come first")
        return len(self.frame_times_s)

    def need(self, name: str) -> Array:
        """The array field `name`, present. Raises ValueError naming the clip and the field when it is not."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{self.id}: field {name!r} was not written by any stage before")
        return np.asarray(value)

    def copy(self, **changes: Any) -> Clip:
        """A copy with changed fields; dictionaries are copied, arrays shared."""
        if not _FIELDS.issuperset(changes):
            raise TypeError(f"a clip has no field {sorted(changes.keys() - _FIELDS)[0]!r}")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in _DICTIONARIES:
            other.__dict__[name] = dict(other.__dict__[name])
        other.__dict__.update(changes)
        return other

    def to_record(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able values, arrays) of every field that is set; `from_record` reverses it."""
        values: dict[str, Any] = {}
        arrays: dict[str, Array] = {}
        for name in _ORDER:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif value is not None:
                values[name] = value
        return values, arrays

    @classmethod
    def from_record(cls, values: dict[str, Any], arrays: dict[str, Array]) -> Clip:
        """Reverse of `to_record`. Raises ValueError for a field that there is not, or of another type."""
        unknown = sorted((values.keys() | arrays.keys()) - _FIELDS)
        if unknown:
            raise ValueError(f"a clip has no field {unknown[0]!r}; the record is of another version")
        check_fields(values)
        if wrong := sorted(arrays.keys() - _ARRAYS):
            raise ValueError(f"field {wrong[0]!r} of a clip is an array")
        return cls(**{**values, **arrays})

    def digest(self) -> str:
        """sha256 (hex) of the whole record: equal exactly when every field is equal."""
        texts = _TEXTS.copy()                            # what `json.dumps` with sorted keys would say
        arrays: list[str] = []
        for name, value in self.__dict__.items():
            if value is _DEFAULTS[name]:                 # as most fields of most clips are
                continue
            if type(value) is str:
                texts[name] = f'"{name}":{_encode_text(value)}'
            elif isinstance(value, np.ndarray):
                arrays.append(name)
                texts[name] = ""
            elif value or type(value) is not dict:       # of none, too, the text is as it was
                texts[name] = "" if value is None else f'"{name}":{_encode(value)}'
        sha = hashlib.sha256(f"{{{','.join(filter(None, texts.values()))}}}".encode())
        for name in sorted(arrays):
            array = np.ascontiguousarray(getattr(self, name))
            sha.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
            sha.update(array.tobytes())
        return sha.hexdigest()


def check_fields(given: Mapping[str, Any]) -> None:
    """Raises ValueError unless these fields, of those that a clip has, are of their types, and finite."""
    for name, value in given.items():
        if not isinstance(value, _TYPES[name]):
            raise ValueError(f"field {name!r} of a clip is a {type(value).__name__}")
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"field {name!r} of a clip is {value}")
    if missing := sorted(_NEEDED - given.keys()):
        raise ValueError(f"a clip without {missing[0]}")


_encode = encoder(sort_keys=True, compact=True)
_encode_text = json.encoder.encode_basestring_ascii

_ORDER = tuple(f.name for f in fields(Clip))
_FIELDS = frozenset(_ORDER)
_DICTIONARIES = tuple(f.name for f in fields(Clip) if f.default_factory is dict)
_NEEDED = frozenset(f.name for f in fields(Clip) if f.default is MISSING and f.default_factory is MISSING)
_TYPES: dict[str, tuple[type, ...]] = {      # what a field may be, by its annotation
    f.name: {"str": (str,), "float": (int, float), "int": (int, float)}.get(str(f.type))
    or ((dict,) if f.default_factory is dict else (np.ndarray, type(None))) for f in fields(Clip)
}  # fmt: skip
_ARRAYS = frozenset(name for name, types in _TYPES.items() if np.ndarray in types)
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Clip)}
# Of every field, in the order of their names: the JSON of its default, made once; "" for none.
_TEXTS = {
    name: f'"{name}":{{}}' if name in _DICTIONARIES
    else "" if _DEFAULTS[name] in (None, MISSING) else f'"{name}":{_encode(_DEFAULTS[name])}'
    for name in sorted(_ORDER)
}  # fmt: skip
