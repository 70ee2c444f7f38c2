"""Cameras of every kind of file that holds some: what `pv3d check-cameras` looks through.

    a storage.root, or a workflow       the clips of its dataset, from its shards
    a shard (.tar)                      its clips; or a folder of shards
    .npy                                [T, 25], the frames of one clip
    dataset.json, or a folder or zip    EG3D's: {"labels": [[file, [25 numbers]], ...]}, pictures in any order
    a PV3D camera file (.json)          [[frame, [25 numbers]], ...], the frames of one clip
    a folder of .json or .npy files     or PV3D's data set, with smoothed_camera2world/ in it
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage, open_storage
from model.camera import CAMERA_DIM
from stages.dataset import LATEST, open_dataset

PV3D_CAMERAS = "smoothed_camera2world"       # folder names of the authors' data set
PV3D_VIDEOS = "recrop_faces"
EG3D_LABELS = "dataset.json"
INDEX_SUFFIX = ".index.json"                 # of what lies beside a shard
CAMERAS_SUFFIX = ".cameras.npy"              # of a member of a shard
_SERVER = "storage.s3."
MOST_BYTES = 1 << 30                         # of cameras, unpacked: those of ten million images are more

# RuntimeError: an encrypted zip, or json that is nested too deeply.
_BROKEN = (
    OSError, EOFError, ValueError, LookupError, TypeError, OverflowError, MemoryError, RuntimeError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError,
)


@dataclass(frozen=True)
class Cameras:
    """What one file, or one clip of a data set, holds."""

    name: str
    numbers: NDArray[np.float64]             # [T, 25]
    neighbours: bool = True                  # rows are frames of one clip, in order
    fault: str = ""                          # why they cannot be read


@dataclass(frozen=True)
class Chosen:
    """How a workflow is read."""

    profile: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def of_server(self) -> bool:
        """Whether all that is chosen is about the server of an s3:// path."""
        return self.profile is None and all(text.startswith(_SERVER) for text in self.overrides)

    @property
    def server(self) -> dict[str, Any]:
        """storage.s3.* as `open_storage` takes it. Raises ValueError for a wrong one."""
        import yaml
        from pydantic import ValidationError

        from pipelines.settings import S3Settings

        chosen = [text.removeprefix(_SERVER).partition("=") for text in self.overrides if _SERVER in text]
        try:
            values = {name: yaml.safe_load(value) for name, _, value in chosen}
            return S3Settings.model_validate(values).model_dump()
        except yaml.YAMLError:
            raise ValueError(f"--set {' '.join(self.overrides)}: no YAML; write key=value") from None
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ValueError(f"--set {_SERVER}{name}: {first['msg']}") from None


def find_cameras(path: str, chosen: Chosen | None = None) -> Iterator[Cameras]:
    """The cameras of what `path` names. Raises ValueError when nothing there can hold any."""
    local = Path(path)
    store = store_of(path, chosen)
    if store is not None:
        yield from _dataset(path, store)
    elif local.is_dir():
        yield from _folder(local)
    elif not local.exists():
        raise ValueError(f"{path}: no such file or folder")
    elif local.suffix in _READERS and local.is_file():
        yield from _READERS[local.suffix](local)
    else:
        raise ValueError(f"{path}: holds no cameras; give {', '.join(_READERS)}, a folder or a storage.root")


def store_of(path: str, chosen: Chosen | None = None) -> Storage | None:
    """The store that `path` names: a storage.root with a dataset, or that of a workflow."""
    if path.startswith("s3://"):
        return open_storage(path, **(chosen.server if chosen else {}))
    if "://" in path or Path(path, LATEST).is_file():
        return open_storage(path)
    if is_workflow(path):
        from pipelines.workflow import load

        chosen = chosen or Chosen()
        return load(path, chosen.profile, chosen.overrides).store()
    return None


def is_workflow(path: str) -> bool:
    return Path(path).suffix in (".yaml", ".yml")


def _dataset(path: str, store: Storage) -> Iterator[Cameras]:
    dataset = open_dataset(store)
    for sample in dataset.samples:
        yield _read(f"{path} {sample.clip_id}", partial(dataset.cameras, sample))


def _folder(folder: Path) -> Iterator[Cameras]:
    if (folder / EG3D_LABELS).is_file():
        yield from _json(folder / EG3D_LABELS)
        return
    place = folder / PV3D_CAMERAS if (folder / PV3D_CAMERAS).is_dir() else folder
    files = sorted(
        file for file in place.iterdir()
        if file.suffix in _READERS and file.is_file() and not file.name.endswith(INDEX_SUFFIX)
    )  # fmt: skip
    if not files:
        raise ValueError(f"{folder}: holds no cameras; give a folder with {', '.join(_READERS)} files")
    for file in files:
        yield from _READERS[file.suffix](file)


def _npy(path: Path) -> Iterator[Cameras]:
    yield _read(str(path), partial(np.load, path, allow_pickle=False))


def _json(path: Path) -> Iterator[Cameras]:
    yield _labels(str(path), path.read_bytes)


def _zip(path: Path) -> Iterator[Cameras]:
    def read() -> bytes:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(EG3D_LABELS).file_size > MOST_BYTES:
                raise ValueError(f"{EG3D_LABELS} has more than {MOST_BYTES:,} bytes")
            return archive.read(EG3D_LABELS)

    yield _labels(str(path), read)


def _tar(path: Path) -> Iterator[Cameras]:
    try:
        with tarfile.open(path, "r:") as tar:                # shards are not packed: nothing can swell
            for member in tar:
                if member.name.endswith(CAMERAS_SUFFIX):
                    name = f"{path} {member.name.removesuffix(CAMERAS_SUFFIX)}"
                    yield _read(name, partial(_member, tar, member))
    except (tarfile.TarError, EOFError, OSError) as error:
        yield Cameras(str(path), np.zeros((0, CAMERA_DIM)), fault=f"cannot be read ({error})")


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if file is None or member.size > MOST_BYTES:
        raise ValueError(f"no plain file of up to {MOST_BYTES:,} bytes")
    return np.load(io.BytesIO(file.read()), allow_pickle=False)


_READERS: dict[str, Callable[[Path], Iterator[Cameras]]] = {
    ".npy": _npy, ".json": _json, ".zip": _zip, ".tar": _tar,
}  # fmt: skip


def _labels(name: str, read: Callable[[], bytes]) -> Cameras:
    """Of a JSON file: EG3D's object, or PV3D's list."""
    neighbours = True

    def numbers() -> Any:
        nonlocal neighbours
        rows = json.loads(read())
        if isinstance(rows, dict):
            neighbours = False
            rows = rows["labels"]
        return [row[1] for row in rows]

    found = _read(name, numbers)
    return Cameras(found.name, found.numbers, neighbours, found.fault)


def _read(name: str, numbers: Callable[[], Any]) -> Cameras:
    """Call `numbers`, and turn what a broken file raises into a fault."""
    try:
        cameras = np.asarray(numbers(), np.float64)
        if cameras.ndim != 2 or cameras.shape[1] != CAMERA_DIM or not len(cameras):
            raise ValueError(f"shape {cameras.shape}, it must be [T, 25]")
    except _BROKEN as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        return Cameras(name, np.zeros((0, CAMERA_DIM)), fault=f"cannot be read ({cause})")
    return Cameras(name, cameras)
