"""Trained networks as the steps after training want them: from a checkpoint of the store, or a folder of one.

generator_ema.safetensors     what is evaluated, registered and shown
generator, image_discriminator, video_discriminator (.safetensors)
<network>_adam.safetensors    whole moments, for any number of workers; absent in an imported checkpoint
checkpoint.json               "variant": the variant with model and recipe; "step", "samples", "dataset" ...
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.checkpoints import CARD, Checkpoint, latest, open_checkpoint
from infra.json_values import read_object, read_text
from infra.storage import FolderStorage, Storage
from model.config import ModelConfig, Variant, from_dict

if TYPE_CHECKING:
    from torch import nn

    from model.generator import Generator

GENERATOR = "generator"
EMA = "generator_ema"
D_IMG = "image_discriminator"
D_VID = "video_discriminator"

LATEST = "train/latest.json"  # which training was run last: {"run": its prefix, "run_id": of MLflow}


def adam(name: str) -> str:
    """The file of a network's optimiser state."""
    return f"{name}_adam"


def newest_checkpoint(store: Storage) -> Checkpoint:
    """The newest sound checkpoint of the training that was run last. Raises ValueError when there is none."""
    try:
        run: str | None = read_text(store, LATEST, "run")
    except FileNotFoundError:
        run = None
    found = latest(store, f"{run}/checkpoints") if run else None
    if found is None:
        raise ValueError(f"no checkpoint in {store.root}; run `pv3d run --until train` first")
    return found


def run_id(store: Storage) -> str:
    """The id of the MLflow run of the training that was run last. Raises ValueError when there is none."""
    try:
        run = read_object(store, LATEST).get("run_id")
    except FileNotFoundError:
        run = None
    if run is None:
        raise ValueError(f"no training in {store.root}; run `pv3d run --until train` first")
    return str(run)


def find_checkpoint(store: Storage, checkpoint: str | Path) -> Checkpoint:
    """`checkpoint`: a key of the store, such as `train` returns, or a folder that holds a checkpoint.json.

    Raises ValueError when there is none.
    """
    folder = Path(checkpoint)
    if (folder / "checkpoint.json").is_file():
        folder = folder.resolve()
        return open_checkpoint(FolderStorage(folder.parent), folder.name)
    return open_checkpoint(store, str(checkpoint))


def checkpoint_variant(checkpoint: Checkpoint) -> Variant:
    """The variant that was trained, with every change of its settings. Raises ValueError for a card that has
    none."""
    found = checkpoint.card.get("variant")
    if not isinstance(found, dict):
        raise ValueError(f"{checkpoint.key}/{CARD}: has no variant; the checkpoint is damaged")
    try:
        return from_dict(Variant, found)
    except ValueError as error:
        raise ValueError(f"{checkpoint.key}/{CARD}: variant: {error}") from None


def load_generator(
    store: Storage, checkpoint: str | Path, *, name: str = EMA
) -> tuple[Generator, ModelConfig]:
    """The averaged generator in evaluation mode on CPU, frozen, and its config. `checkpoint` as in
    `find_checkpoint`."""
    from model.generator import Generator

    found = find_checkpoint(store, checkpoint)
    config = checkpoint_variant(found).model
    generator = Generator(config)
    load_weights(generator, found, name)
    return generator.eval().requires_grad_(False), config


def load_weights(network: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Put `<name>.safetensors` into `network`, every tensor of it. Raises ValueError naming what does not
    fit."""
    try:
        network.load_state_dict(checkpoint.load(name))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{checkpoint.key}/{name}.safetensors does not fit the model: {reason}") from None
