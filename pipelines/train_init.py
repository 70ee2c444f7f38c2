"""Where a training starts from when it is not from nothing: `train.init`.

    path/to/folder            a checkpoint: imported, copied, or of another store
    train/<name>              a training of this store: its newest checkpoint
    train/<name>/checkpoints/<step>
    models:/NAME@ALIAS        a registered version: the checkpoint that it was made of, while the store has
    models:/NAME/VERSION      it; else its averaged generator alone, with fresh discriminators

The weights are copied into the store, `train/init/<digest>`, where every worker can read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import checkpoints
from infra.checkpoints import CARD, Checkpoint
from infra.paths import expanded
from infra.storage import FolderStorage, Storage
from pipelines.train_job import Init

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

FOLDER = "train/init"
FINISHED = 10**9
"""Videos seen by weights that do not tell: every schedule is over."""


def prepare_init(workflow: Workflow) -> Init | None:
    """What `train.init` names, copied into the store once. None when it is not set. Raises ValueError, naming
    the setting."""
    wanted, store = workflow.train.init, workflow.store()
    if wanted is None:
        return None
    with _found(wanted, store, workflow.storage.tracking) as found:
        digest = digest_of(found)
        key = f"{FOLDER}/{digest[:16]}"
        samples = found.card.get("samples")
        init = Init(key, digest, FINISHED if samples is None else int(samples))
        if not store.exists(f"{key}/{CARD}"):
            _copy(found, store, key)
            log.info("train.init: %s was copied to %s", wanted, key)
    return init


def digest_of(found: Checkpoint) -> str:
    """sha256 (hex) over the files of a checkpoint, by their own."""
    files = {name: entry["sha256"] for name, entry in found.card["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _copy(found: Checkpoint, store: Storage, key: str) -> None:
    found.verify()
    for name in found.card["files"]:
        with found.store.local(f"{found.key}/{name}.safetensors") as path:
            store.upload(f"{key}/{name}.safetensors", path)
    store.write(f"{key}/{CARD}", json.dumps(found.card, indent=1, sort_keys=True).encode())


@contextlib.contextmanager
def _found(wanted: str, store: Storage, tracking: str) -> Iterator[Checkpoint]:
    try:
        if wanted.startswith("models:"):
            with _registered(wanted, store, tracking) as found:
                yield found
            return
        folder = expanded(wanted)
        if folder.is_dir():
            folder = folder.resolve()
            yield checkpoints.open_checkpoint(FolderStorage(folder.parent), folder.name)
            return
        yield _of_store(wanted, store)
    except ValueError as error:
        raise ValueError(f"train.init: {wanted}: {error}") from None


def _of_store(wanted: str, store: Storage) -> Checkpoint:
    key = wanted.strip("/")
    if store.exists(f"{key}/{CARD}"):
        return checkpoints.open_checkpoint(store, key)
    newest = checkpoints.latest(store, f"{key}/checkpoints")
    if newest is None:
        raise ValueError(
            f"no folder, and no training of {store.root}; name the folder of a checkpoint, train/<name> of "
            "the store, or models:/NAME@ALIAS"
        )
    return newest


@contextlib.contextmanager
def _registered(name: str, store: Storage, tracking: str) -> Iterator[Checkpoint]:
    import mlflow
    from mlflow import MlflowClient

    from pipelines.models import address, answering, check_exists, registry

    found = address(name)
    with registry(tracking), answering(tracking), tempfile.TemporaryDirectory(prefix="pv3d-init-") as folder:
        check_exists(found, tracking)
        client = MlflowClient()
        version = (
            client.get_model_version_by_alias(found["name"], found["alias"]) if found["alias"]
            else client.get_model_version(found["name"], found["version"])
        )  # fmt: skip
        key = version.tags.get("checkpoint", "")
        if key and store.exists(f"{key}/{CARD}"):
            yield checkpoints.open_checkpoint(store, key)
            return
        log.warning("train.init: %s: its checkpoint %s is not in %s; it starts from the averaged generator, "
                    "with fresh discriminators", name, key or "(unknown)", store.root)  # fmt: skip
        local = Path(mlflow.artifacts.download_artifacts(name, dst_path=folder))
        yield _of_artifacts(local, Path(folder, "made"))


def _of_artifacts(model: Path, made: Path) -> Checkpoint:
    """A registered model's weights as a checkpoint of the averaged generator."""
    from safetensors.torch import load_file

    from pipelines.checkpoints import EMA

    weights = next(iter(sorted(model.rglob("generator.safetensors"))), None)
    if weights is None:
        raise ValueError("it was not registered by pv3d: it holds no generator.safetensors")
    card: dict[str, Any] = {"variant": None, "samples": None, "registered": True}
    return checkpoints.save(FolderStorage(made), "init", 0, {EMA: load_file(weights)}, card, keep=1)
