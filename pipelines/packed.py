"""A model as one small file, half precision: NAME.safetensors, its config in the header.

One ships with the project, PORTRAITS: what is opened where no model is named. `pv3d pack` makes such files.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.checkpoints import CARD, open_checkpoint
from infra.storage import FolderStorage
from pipelines.latents import write_whole

if TYPE_CHECKING:
    from pipelines.models import OpenModel

log = logging.getLogger(__name__)

SCHEMA = 1
KEY = "pv3d"                     # of the header's one entry: more would be in another order each time
SUFFIX = ".safetensors"
PORTRAITS = Path(__file__).parent / "data" / "portraits.safetensors"
TOLD = ("step", "samples", "dataset")


def open_portraits() -> OpenModel:
    """The model that ships with the project. Raises ValueError where an installation has none."""
    if not PORTRAITS.is_file():
        raise ValueError(
            "no model is named, and none ships with this installation; name one: models:/NAME@ALIAS, or the "
            "folder of a checkpoint"
        )
    return open_packed(PORTRAITS, PORTRAITS.stem)


def open_packed(path: Path, name: str) -> OpenModel:
    """The generator in such a file. Raises ValueError of one line for what is none."""
    import torch
    from safetensors import SafetensorError, safe_open

    from model import camera, clips
    from model.config import ModelConfig, from_dict
    from model.generator import Generator
    from pipelines.models import OpenModel

    try:
        with safe_open(str(path), "pt") as file:
            card = _card(file.metadata() or {})
            generator = Generator(from_dict(ModelConfig, card["model"]))
            generator.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"model {name!r}: is damaged, or no model of `pv3d pack` ({cause})") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return OpenModel(name, generator.eval().requires_grad_(False).to(device), clips, camera)


def _card(metadata: dict[str, str]) -> dict[str, Any]:
    card = json.loads(metadata.get(KEY, "null"))
    if not isinstance(card, dict) or card.get("schema") != SCHEMA or not isinstance(card.get("model"), dict):
        raise ValueError(f"its header holds no config of schema {SCHEMA}")
    return card


def pack(model: str, out: Path, *, tracking: str, note: str = "") -> tuple[dict[str, Any], str]:
    """Write the averaged generator of `model` (see `open_model`) as one file; equal weights give equal
    bytes. `note`: how it was trained. Raises ValueError of one line."""
    import torch
    from safetensors.torch import save

    from model.plain import to_dict
    from pipelines.models import open_model

    if out.suffix != SUFFIX:
        raise ValueError(f"--out {out}: end it in {SUFFIX}")
    opened = open_model(model, tracking)
    tensors = {}
    for key, tensor in opened.generator.state_dict().items():
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        if not bool(torch.isfinite(half).all()):
            raise ValueError(f"model {model!r}: {key} is not finite in half precision; keep its checkpoint")
        tensors[key] = half
    card = {"schema": SCHEMA, "model": to_dict(opened.generator.config), "note": note, **_training(model)}
    text = json.dumps(card, sort_keys=True, allow_nan=False)
    data = save(tensors, metadata={KEY: text})
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, data)
    return {"file": str(out), "bytes": len(data), **card}, f"{out}  {len(data) / 1e6:.2f} MB"


def _training(model: str) -> dict[str, Any]:
    """What the checkpoint tells of its making, where the model is a folder of one."""
    folder = Path(model).expanduser().resolve()
    if not (folder / CARD).is_file():
        return {}
    card = open_checkpoint(FolderStorage(folder.parent), folder.name).card
    return {key: card[key] for key in TOLD if key in card}
