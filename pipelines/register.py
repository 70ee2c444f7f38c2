"""Hand a trained model over: one version in the MLflow registry that carries its weights, its code and its
evidence."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.tracking import shown

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from model.generator import Generator
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

CODE_FILE = Path(__file__).with_name("pyfunc_model.py")
DISTRIBUTION = "pv3d-pipeline"
TAG_LENGTH = 5000
DESCRIPTION_LENGTH = 5000
REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch")


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    name: str
    version: int
    alias: str
    created: bool
    """False when this checkpoint had been registered before."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register(workflow: Workflow) -> Version:
    """Register the newest checkpoint under the workflow's name and alias; one that is registered is not
    added again.

    Raises ValueError when there is no checkpoint or no MLflow run of its training.
    """
    from pipelines.checkpoints import load_generator
    from pipelines.evaluate import newest_checkpoint, of, read_result, result_name, run_id
    from pipelines.model_card import model_card
    from pipelines.models import answering, registry

    store, settings = workflow.store(), workflow.register
    checkpoint, run = newest_checkpoint(workflow), run_id(workflow)
    if run is None:
        raise ValueError(
            f"{checkpoint.key}: its training has no MLflow run; run `pv3d run --until train` again"
        )
    generator, _ = load_generator(store, checkpoint.key)
    measured = result_name(of(checkpoint), workflow.evaluate, workflow.store())
    evaluation = read_result(store, measured) if store.exists(measured) else None
    tags = describe(workflow, checkpoint, evaluation)
    told = {**tags, "checkpoint": checkpoint.key, "code": code_version()}
    with registry(workflow.storage.tracking), answering(workflow.storage.tracking):
        return register_generator(
            generator,
            name=settings.name,
            alias=settings.alias,
            run_id=run,
            checkpoint=checkpoint.key,
            tags=tags,
            card=model_card(workflow, checkpoint, told, evaluation),
        )


def describe(
    workflow: Workflow, checkpoint: Checkpoint, evaluation: dict[str, Any] | None = None
) -> dict[str, str]:
    """The tags of a version: `step`, `data` (dataset version), `config` and `model` (hashes of all settings
    and of the networks'), `ema` (sha256 of the weights' file), `git` (commit, of a checkout), `licences` of
    the training clips, and `eval/...`, the figures."""
    from pipelines.checkpoints import EMA, checkpoint_variant
    from pipelines.evaluate import model_key
    from pipelines.evaluate_log import plain
    from pipelines.model_card import dataset_of

    dataset = dataset_of(workflow, checkpoint)
    config = json.dumps([checkpoint.card["variant"], workflow.train.model_dump(mode="json")], sort_keys=True)
    licences = sorted({sample.licence for sample in dataset.samples if sample.split == "train"})
    commit, measured = git_commit(), evaluation["metrics"] if evaluation else {}
    return {
        "step": str(checkpoint.step),
        "data": dataset.version,
        "config": hashlib.sha256(config.encode()).hexdigest()[:12],
        "ema": checkpoint.card["files"][EMA]["sha256"],
        "model": model_key(checkpoint_variant(checkpoint).model),
        "licences": "; ".join(licences)[:TAG_LENGTH],
        **({"git": commit} if commit else {}),
        **{f"eval/{plain(name)}": _said(value) for name, value in measured.items()},
    }


def _said(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return f"not computed: {value['reason']}"[:TAG_LENGTH]
    return f"{value['value']:.6g} {value['unit']}".rstrip()


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with "-dirty" when tracked files differ from it;
    None where there is no checkout or no git."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def register_generator(
    generator: Generator, *, name: str, alias: str, run_id: str, checkpoint: str, tags: dict[str, str],
    card: str = "",
) -> Version:  # fmt: skip
    """Log `generator` into the MLflow run and give its new version `alias` and `tags`; `card` (Markdown)
    travels with it.

    A checkpoint is registered once: when a version with the same weights, code and `checkpoint` exists, that
    one is returned, and gets the alias unless a later version has it. The tracking URI is that of the
    process.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    identity = {"checkpoint": checkpoint, "weights": _weights_hash(generator), "code": code_version()}
    for old in client.search_model_versions(f"name = '{name}'"):
        if all(old.tags.get(key) == value for key, value in identity.items()):
            return _again(client, Version(name, int(old.version), alias, created=False), tags)
    with tempfile.TemporaryDirectory(prefix="pv3d-register-") as folder:
        number = _log(
            generator, Path(folder), name=name, run_id=run_id, tags={**identity, **tags}, card=card
        )
    if card:
        client.update_model_version(name, str(number), description=card[:DESCRIPTION_LENGTH])
    for key, value in identity.items():
        client.set_model_version_tag(name, str(number), key, value)
    return _point(client, Version(name, number, alias, created=True), tags)


def _again(client: Any, version: Version, tags: dict[str, str]) -> Version:
    """A run that has nothing new to register takes the alias from no later version."""
    held = client.get_registered_model(version.name).aliases.get(version.alias)
    if held is not None and int(held) >= version.version:
        log.info("%s version %d was registered before; %s is version %s",
                 version.name, version.version, version.alias, held)  # fmt: skip
        return version
    return _point(client, version, tags)


def _point(client: Any, version: Version, tags: dict[str, str]) -> Version:
    """Tags first: whoever follows the alias finds a described version."""
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    client.set_registered_model_alias(version.name, version.alias, str(version.version))
    log.info("registered %s version %d as %s", version.name, version.version, version.alias)
    return version


def _log(
    generator: Generator, folder: Path, *, name: str, run_id: str, tags: dict[str, str], card: str
) -> int:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array
    from numpy import dtype
    from safetensors.torch import save_file

    from model.config import to_dict

    package = copy_code(folder)
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()},
        folder / "generator.safetensors",
    )
    config = {"package": package.name, "model": to_dict(generator.config), "tags": tags}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
    artifacts = {"weights": folder / "generator.safetensors", "config": folder / "config.json"}
    if card:
        artifacts["card"] = folder / "model_card.md"
        artifacts["card"].write_text(card, encoding="utf-8")
    side = generator.config.img_resolution
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.long, "seed"),
                ColSpec(DataType.double, "time", required=False),
                ColSpec(DataType.double, "yaw_deg", required=False),
                ColSpec(DataType.double, "pitch_deg", required=False),
                ColSpec(Array(DataType.double), "camera", required=False),
            ]
        ),
        outputs=Schema([TensorSpec(dtype("uint8"), (-1, side, side, 3))]),
        params=ParamSchema(
            [
                ParamSpec("psi", DataType.double, 1.0),
                ParamSpec("mapping", DataType.string, "first"),
            ]
        ),
    )
    with mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(CODE_FILE),
            code_paths=[str(package)],
            artifacts={key: str(path) for key, path in artifacts.items()},
            signature=signature,
            input_example=_input_example(),
            pip_requirements=requirements(),
            registered_model_name=name,
        )
    return int(info.registered_model_version)


def _input_example() -> Any:
    import pandas

    return pandas.DataFrame({"seed": [0, 0], "time": [0.0, 1.0], "yaw_deg": [0.0, 20.0]})


def copy_code(folder: Path) -> Path:
    """Copy `model/` into `folder` under a name that holds its hash, its own imports renamed. Returns its
    path.

    Two versions of the code can then be loaded in one process, and no other `model` is ever imported.
    """
    package = folder / f"pv3d_model_{code_version().rpartition('+')[2]}"
    package.mkdir()
    for path in _code_files():
        text = path.read_text(encoding="utf-8")
        renamed = re.sub(
            r"^(\s*)(from|import) model(?=[.\s])", rf"\1\2 {package.name}", text, flags=re.MULTILINE
        )
        (package / path.name).write_text(renamed, encoding="utf-8")
    (package / "LICENSE").write_text(_licence(), encoding="utf-8")
    return package


def _licence() -> str:
    """The text, from the checkout or from what was installed."""
    beside = Path(__file__).parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    return importlib.metadata.distribution(DISTRIBUTION).read_text("licenses/LICENSE") or ""


def code_version() -> str:
    """Version of the distribution and the first 12 digits of the hash of `model/`, such as
    0.1.0+1a2b3c4d5e6f."""
    sha = hashlib.sha256()
    for path in [*_code_files(), CODE_FILE]:
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{importlib.metadata.version(DISTRIBUTION)}+{sha.hexdigest()[:12]}"


def _code_files() -> list[Path]:
    import model

    return sorted(Path(str(model.__file__)).parent.glob("*.py"))


def requirements() -> list[str]:
    """What a clean environment needs to load the version, as installed here, without local version labels."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _weights_hash(generator: Generator) -> str:
    sha = hashlib.sha256()
    for key, value in sorted(generator.state_dict().items()):
        sha.update(f"{key}|{tuple(value.shape)}|".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def find_version(tracking: str, name: str, alias: str) -> Any | None:
    """MLflow's record of the version that `alias` points to, None when there is none (or no registry yet)."""
    if tracking.startswith("sqlite:///") and not Path(tracking.removeprefix("sqlite:///")).is_file():
        return None
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            log.warning("the registry at %s does not answer (%s)", shown(tracking), error.error_code)
        return None
