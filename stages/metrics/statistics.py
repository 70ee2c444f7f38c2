"""Mean and covariance of features: streamed, kept in files, and read from the authors' published file.

All sums are float64 and of fixed size: memory does not grow with the number of videos.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCHEMA = 1
MOST_BYTES = 1 << 28                         # of a statistics file
PUBLISHED_FRAMES = 16
"""Of each clip that the authors' statistics are of. Their file does not say."""
_ROWS = 256                                  # features that are summed up at once


class Moments:
    """Mean [D] and covariance [D, D] of features that come a few at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Array = np.zeros(0)
        self._spread: Array = np.zeros((0, 0))               # sum of (x - mean)(x - mean)^T
        self._waiting: list[Array] = []

    def add(self, features: NDArray[Any]) -> None:
        """Features [n, D]. Raises ValueError for numbers that are not finite or of another D."""
        x = checked(features)
        if self.count and x.shape[1] != self.features:
            raise ValueError(f"features of {x.shape[1]} numbers after {self.features}; use one network")
        if not self.count:
            self._mean, self._spread = np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2)
        self.count += len(x)
        self._waiting.append(x)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._flush()

    @property
    def features(self) -> int:
        return len(self._mean)

    @property
    def mean(self) -> Array:
        self._flush()
        return self._mean

    @property
    def covariance(self) -> Array:
        """With 1 / N, as the authors' scripts have it. Raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"{self.count} sample(s): too few for a covariance; give at least 2 videos")
        self._flush()
        return self._spread / self.count

    def merged(self, other: Moments) -> Moments:
        """Of both (Chan et al. 1983). Neither is changed."""
        out = Moments()
        parts = [part for part in (self, other) if part.count]
        for part in parts:
            part._flush()
        if len(parts) < 2:
            both = parts[0] if parts else out
            out.count, out._mean, out._spread = both.count, both._mean.copy(), both._spread.copy()
            return out
        out.count, out._mean, out._spread = self.count, self._mean.copy(), self._spread.copy()
        out._merge(other.count, other._mean, other._spread, self.count)
        out.count += other.count
        return out

    def _flush(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate(self._waiting)
        self._waiting = []
        mean = x.mean(axis=0)
        centred = x - mean
        self._merge(len(x), mean, centred.T @ centred, self.count - len(x))

    def _merge(self, count: int, mean: Array, spread: Array, before: int) -> None:
        """Add `count` samples to the `before` that mean and spread are of."""
        both = before + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / both)
        self._spread += spread
        self._spread += np.outer(shift, shift * (before * count / both))


def checked(features: NDArray[Any]) -> Array:
    """Features [n, D] as float64. Raises ValueError for another shape and for NaN."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"features have shape {x.shape}, not [samples, numbers]")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite numbers; look at the frames they came from")
    return x


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of the features of real videos."""

    mean: Array
    covariance: Array
    count: int
    """Videos."""
    network: str = ""
    """sha256 of the file that gave the features; "" when the statistics do not say."""
    about: dict[str, Any] = field(default_factory=dict)
    """Which videos, and how they were prepared."""
    features: NDArray[np.float32] | None = None
    """[videos, D], one of each, for KID."""

    def check_network(self, sha256: str, features: int, what: str) -> None:
        """Raise ValueError when they are not of this network."""
        if len(self.mean) != features:
            raise ValueError(
                f"{what}: statistics of another network: {len(self.mean)} features, this one gives {features}"
            )
        if self.network and self.network != sha256:
            raise ValueError(
                f"{what}: statistics of another network: of sha256 {self.network[:12]}, this one is "
                f"{sha256[:12]}; make them again, or take the network that they were made with"
            )

    def to_bytes(self) -> bytes:
        """An npz file without pickles."""
        head = {"schema": SCHEMA, "count": self.count, "network": self.network, "about": self.about}
        arrays: dict[str, NDArray[Any]] = {
            "mean": self.mean, "covariance": self.covariance,
            "head": np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8),
        }  # fmt: skip
        if self.features is not None:
            arrays["features"] = self.features
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def from_bytes(data: bytes, what: str) -> Statistics:
    """What `to_bytes` wrote. Raises ValueError, naming `what`, for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].tobytes())
            if head["schema"] != SCHEMA:
                raise ValueError(f"schema {head['schema']}")
            found = Statistics(
                mean=arrays["mean"], covariance=arrays["covariance"], count=int(head["count"]),
                network=str(head["network"]), about=dict(head["about"]),
                features=arrays["features"] if "features" in arrays.files else None,
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{what}: no statistics of features ({error}); delete it, or name another") from None
    return _sound(found, what)


def read_statistics(path: Path) -> Statistics:
    """A file of ours (npz), or one as the authors published (pickle). Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"statistics {path}: no such file; give the path of one")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"statistics {path}: larger than {MOST_BYTES >> 20} MiB; this is no statistics file")
    data = path.read_bytes()
    return from_bytes(data, str(path)) if data[:2] == b"PK" else _published(data, path)


_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    """Numbers, text, lists, dicts and numpy arrays; whatever else a pickle names is refused unexecuted."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.", 1)        # where it was until numpy 2
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}; arrays and numbers alone are read")
        return super().find_class(module, name)


def _published(data: bytes, path: Path) -> Statistics:
    """The authors' file: a dict with the *sums* of x and of x x^T over `num_items` videos, whatever its keys
    `raw_mean` and `raw_cov` are called."""
    what = f"statistics {path}"
    try:
        found = _Restricted(io.BytesIO(data)).load()
        count = int(found["num_items"])
        total = np.asarray(found["raw_mean"], dtype=np.float64).reshape(-1)
        products = np.asarray(found["raw_cov"], dtype=np.float64)
    except (
        pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError, AttributeError, IndexError,
        ImportError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        cause = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"{what}: cannot be read ({cause}); give the authors' pickle or an npz") from None
    if not 2 <= count < 1 << 53 or products.shape != (len(total),) * 2:
        raise ValueError(f"{what}: {count} videos, sums {total.shape} and {products.shape} do not fit")
    mean = total / count
    about = {"file": path.name, "frames": PUBLISHED_FRAMES}
    return _sound(Statistics(mean, products / count - np.outer(mean, mean), count, about=about), what)


def _sound(found: Statistics, what: str) -> Statistics:
    """Raise ValueError for numbers that are no mean and covariance."""
    mean, covariance = found.mean, found.covariance
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise ValueError(f"{what}: {mean.dtype} and {covariance.dtype} arrays, not of real numbers")
    fits = mean.ndim == 1 and len(mean) > 0 and covariance.shape == (len(mean),) * 2 and found.count >= 2
    if not fits or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{what}: mean {mean.shape} and covariance {covariance.shape} of no use")
    if np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max():
        raise ValueError(f"{what}: a matrix that is not symmetric; this is no covariance")
    if (np.diag(covariance) < -1e-6 * max(float(np.abs(covariance).max()), 1e-12)).any():
        raise ValueError(f"{what}: a variance is negative; this is no covariance")
    return found
