"""Training states in the store: safetensors files, and a json, written last, that makes them a checkpoint.

    <prefix>/<step>/<name>.safetensors    weights and optimiser moments, one file per network
    <prefix>/<step>/checkpoint.json       schema, step, sha256 and size of every file, what the trainer adds

A folder without a json, or whose files do not match it, is no checkpoint: readers take the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.json_values import parsed
from infra.storage import Storage, StorageError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA = 1
CARD = "checkpoint.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")    # of a file: nothing that leads elsewhere

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. `card` is its json; nothing but the card has been read yet."""

    store: Storage
    key: str  # of its folder
    card: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.card["step"])

    def __contains__(self, name: str) -> bool:
        return name in self.card["files"]

    def load(self, name: str) -> Tensors:
        """The tensors of `<name>.safetensors`, on CPU. Raises ValueError unless the file is as written."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if name not in self:
            raise ValueError(f"{self.key} has no {name}; it holds {', '.join(sorted(self.card['files']))}")
        try:
            with self.store.local(f"{self.key}/{name}.safetensors") as path:
                _check(path, self.card["files"][name])
                tensors: Tensors = load_file(path)
                return tensors
        except (FileNotFoundError, SafetensorError, _WrongFileError) as error:
            raise self._damaged(name, error) from None

    def verify(self) -> None:
        """Raise ValueError unless every file is there and has its sha256."""
        for name, entry in self.card["files"].items():
            try:
                with self.store.local(f"{self.key}/{name}.safetensors") as path:
                    _check(path, entry)
            except (FileNotFoundError, _WrongFileError) as error:
                raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> ValueError:
        return ValueError(f"{self.key}/{name}.safetensors: {error}; the checkpoint is damaged")


class _WrongFileError(Exception):
    pass


def _check(path: Path, entry: Mapping[str, Any]) -> None:
    if path.stat().st_size != entry["bytes"]:
        raise _WrongFileError(f"{path.stat().st_size} bytes where {entry['bytes']} were written")
    if file_sha256(path) != entry["sha256"]:
        raise _WrongFileError("its sha256 is not the one written")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    store: Storage, prefix: str, step: int, files: Mapping[str, Mapping[str, Tensor]],
    card: Mapping[str, Any], *, keep: int,
) -> Checkpoint:  # fmt: skip
    """Write a checkpoint below `prefix`, then remove all but the newest `keep` (and what is half-written).

    Raises StorageError when a disk is full, of the store or of temporary files: what was before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    key, entries = f"{prefix}/{step:08d}", {}
    store.delete(f"{key}/{CARD}")  # of another attempt: its files are about to be replaced
    for name, tensors in files.items():
        with tempfile.TemporaryDirectory(prefix="pv3d-checkpoint-") as folder:
            path = Path(folder, "tensors")
            # Copies: under ZeRO the weights are views of one buffer, which safetensors refuses.
            copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
            try:
                save_file(copies, path)
            except SafetensorError as error:
                raise StorageError(
                    f"cannot write {name} of {key} to {folder} ({error}); make room there, or set TMPDIR to "
                    "another folder"
                ) from None
            entries[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            store.upload(f"{key}/{name}.safetensors", path)
    full = {**card, "schema": SCHEMA, "step": step, "files": entries}
    store.write(f"{key}/{CARD}", json.dumps(full, indent=1, sort_keys=True, allow_nan=False).encode())
    _prune(store, prefix, keep, newest=key)
    return Checkpoint(store, key, full)


def _prune(store: Storage, prefix: str, keep: int, newest: str) -> None:
    complete = [found.key for found in checkpoints(store, prefix)]
    kept = {newest, *complete[:keep]}
    keys = sorted(store.list(prefix), key=lambda key: not key.endswith(f"/{CARD}"))  # the card goes first
    for key in keys:
        if key.rsplit("/", 1)[0] not in kept:
            store.delete(key)


def checkpoints(store: Storage, prefix: str) -> Iterator[Checkpoint]:
    """Every checkpoint below `prefix` with a readable card, newest first; the files are not looked at."""
    cards = [key for key in store.list(prefix) if key.endswith(f"/{CARD}")]
    for key in sorted(cards, reverse=True):
        try:
            yield open_checkpoint(store, key.removesuffix(f"/{CARD}"))
        except ValueError as error:
            log.warning("skipping %s", error)


def open_checkpoint(store: Storage, key: str) -> Checkpoint:
    """The checkpoint in folder `key`. Raises ValueError when there is none, or its card cannot be read."""
    try:
        data = store.read(f"{key}/{CARD}")
    except FileNotFoundError:
        raise ValueError(f"{key} in {store.root} is no checkpoint: it has no {CARD}") from None
    try:
        card = parsed(data)
    except ValueError:
        raise ValueError(f"{key}/{CARD}: not JSON; the checkpoint is damaged") from None
    if not isinstance(card, dict) or card.get("schema") != SCHEMA or not {"files", "step"} <= card.keys():
        raise ValueError(f"{key}/{CARD}: not of schema {SCHEMA}; it was written by another version")
    if not _lists_files(card["files"]) or type(card["step"]) is not int or not 0 <= card["step"] < 1 << 53:
        raise ValueError(f"{key}/{CARD}: its files or its step are not as written; the checkpoint is damaged")
    return Checkpoint(store, key, card)


def _lists_files(files: Any) -> bool:
    """Whether it is a table of plain file names, each with bytes and sha256."""
    return isinstance(files, dict) and all(
        NAME.fullmatch(name) and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        for name, entry in files.items()
    )


def latest(store: Storage, prefix: str) -> Checkpoint | None:
    """The newest checkpoint below `prefix` whose files are all as written; warns of those it skips."""
    for found in checkpoints(store, prefix):
        try:
            found.verify()
        except ValueError as error:
            log.warning("skipping %s", error)
        else:
            return found
    return None
