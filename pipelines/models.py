"""Open a model by name, wherever it lies: a registered version, or a checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.checkpoints import CARD
from infra.paths import expanded
from infra.storage import FolderStorage, Storage, open_storage
from infra.tracking import check_tracking, shown
from pipelines.checkpoints import LATEST, load_generator, newest_checkpoint
from pipelines.packed import SUFFIX, open_packed, open_portraits

if TYPE_CHECKING:
    from model.generator import Generator

REGISTERED = re.compile(r"models:/(?P<name>[^/:@]+)(@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class OpenModel:
    """A generator in eval mode, with the code that belongs to it (a registered version brings its own)."""

    name: str
    generator: Generator
    clips: Any  # its `model.clips`
    cameras: Any  # its `model.camera`


def open_model(name: str | None, tracking: str) -> OpenModel:
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION` (in the registry at `tracking`), the folder of a
    checkpoint, a `storage.root`, whose newest checkpoint it is, or a file of `pv3d pack`. None: the model
    that ships with the project.

    Raises ValueError of one line: unknown model, alias, version, folder, or a registry that is away.
    """
    if name is None:
        return open_portraits()
    if name.startswith("models:"):
        return _registered(name, tracking)
    if name.startswith("s3://"):
        store = open_storage(name)
        return of_checkpoint(store, newest_checkpoint(store).key, name)
    folder = expanded(name)
    if folder.name == CARD:
        folder = folder.parent
    if folder.suffix == SUFFIX and folder.is_file():
        return open_packed(folder, name)
    if not folder.is_dir():
        raise ValueError(
            f"model {name!r}: no such folder; give models:/NAME@ALIAS, models:/NAME/VERSION, "
            "the folder of a checkpoint, a storage.root or a file of `pv3d pack`"
        )
    folder = folder.resolve()
    if (folder / LATEST).is_file():
        root = FolderStorage(folder)
        found = newest_checkpoint(root)
        return of_checkpoint(root, found.key, str(expanded(name) / found.key))   # a later one is another
    return of_checkpoint(FolderStorage(folder.parent), folder.name, name)


def of_checkpoint(store: Storage, key: str, name: str = "") -> OpenModel:
    """The averaged generator of a checkpoint. Raises ValueError when it is damaged or holds none."""
    import torch

    from model import camera, clips

    generator, _ = load_generator(store, key)
    return OpenModel(name or key, generator.to("cuda" if torch.cuda.is_available() else "cpu"), clips, camera)


def _registered(name: str, tracking: str) -> OpenModel:
    import mlflow
    from mlflow.exceptions import MlflowException
    from safetensors import SafetensorError
    from yaml import YAMLError

    found = address(name)
    with registry(tracking):
        check_exists(found, tracking)
        try:
            loaded = mlflow.pyfunc.load_model(name).unwrap_python_model()
        except (                             # of files that are not as they were written
            LookupError, MlflowException, OSError, RuntimeError, SafetensorError, TypeError, ValueError,
            YAMLError,
        ) as error:  # fmt: skip
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"model {name!r}: cannot be loaded ({cause}); register it again") from None
    if not hasattr(loaded, "generator") or not hasattr(loaded, "clips"):
        raise ValueError(f"model {name!r}: was not registered by pv3d; it holds no generator")
    return OpenModel(name, loaded.generator, loaded.clips, loaded.cameras)


@contextlib.contextmanager
def registry(tracking: str) -> Iterator[None]:
    """Point MLflow at `tracking` while the context lasts. Raises ValueError for a database that does not
    exist."""
    import mlflow

    path = Path(tracking.removeprefix("sqlite:///"))
    if tracking.startswith("sqlite:///") and not path.is_file():
        raise ValueError(f"tracking {shown(tracking)}: no such database; give the one that the run wrote to")
    check_tracking(tracking)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def address(name: str) -> re.Match[str]:
    """Name, alias and version of a registered model's address. Raises ValueError for what is none."""
    found = REGISTERED.fullmatch(name)
    if found is None:
        raise ValueError(f"model {name!r}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return found


def check_exists(found: re.Match[str], tracking: str) -> None:
    """Raise ValueError for an address that is not in the registry."""
    from mlflow import MlflowClient

    name = found[0]
    client = MlflowClient()
    model, alias, version = found["name"], found["alias"], found["version"]
    with answering(tracking):
        versions = client.search_model_versions(f"name = '{model}'")
        if not versions:
            raise ValueError(
                f"model {name!r}: nothing is registered as {model!r} at {shown(tracking)}; "
                "`pv3d run` registers"
            )
        if alias and alias not in client.get_registered_model(model).aliases:
            known = sorted(client.get_registered_model(model).aliases) or ["none"]
            raise ValueError(f"model {name!r}: no alias {alias!r}; known aliases: {', '.join(known)}")
        if version and version not in {str(v.version) for v in versions}:
            raise ValueError(
                f"model {name!r}: no version {version}; the latest is {max(int(v.version) for v in versions)}"
            )


@contextlib.contextmanager
def answering(tracking: str) -> Iterator[None]:
    """Turn the errors of an MLflow server into one line (a ValueError)."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # Of SQLAlchemy's errors the second line has the cause.
        lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result")]
        text = lines[0][:200] if lines else type(error).__name__
        raise ValueError(
            f"storage.tracking: {shown(tracking)} does not answer as it should ({text})"
        ) from None
