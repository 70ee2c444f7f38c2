"""A model as one file, and the one that ships."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from click.testing import CliRunner  # noqa: E402

from infra.checkpoints import save  # noqa: E402
from infra.storage import FolderStorage  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines import packed  # noqa: E402
from pipelines.api import Model  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.models import open_model  # noqa: E402
from pipelines.packed import PORTRAITS, pack  # noqa: E402

MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny().model).eval()


def checkpoint_of(generator: Generator, root: Path) -> Path:
    card = {"variant": to_dict(tiny()), "samples": 96, "dataset": "v1"}
    save(FolderStorage(root), "checkpoints", 24, {EMA: generator.state_dict()}, card, keep=1)
    return root / "checkpoints" / "00000024"


def test_a_packed_model_is_small_and_shows_what_its_checkpoint_shows(generator, tmp_path):
    checkpoint, out = checkpoint_of(generator, tmp_path), tmp_path / "out" / "m.safetensors"
    told, line = pack(str(checkpoint), out, tracking="unused", note="as a test")
    assert out.stat().st_size == told["bytes"] < MOST_BYTES
    assert (told["step"], told["samples"], told["dataset"], told["note"]) == (24, 96, "v1", "as a test")
    assert line.startswith(str(out))
    whole, small = (
        next(Model.load(str(name)).generate([3], times=np.zeros(1, np.float32))).pictures["image"]
        for name in (checkpoint, out)
    )
    assert np.abs(whole.astype(int) - small).mean() < 1
    again = tmp_path / "again.safetensors"
    pack(str(checkpoint), again, tracking="unused", note="as a test")
    assert again.read_bytes() == out.read_bytes()


def test_without_a_name_it_is_the_model_that_ships(generator, tmp_path, monkeypatch):
    checkpoint = checkpoint_of(generator, tmp_path)
    monkeypatch.setattr(packed, "PORTRAITS", tmp_path / "portraits.safetensors")
    with pytest.raises(ValueError, match="none ships with this installation"):
        open_model(None, "unused")
    pack(str(checkpoint), tmp_path / "portraits.safetensors", tracking="unused")
    assert Model.load().name == "portraits"
    from pipelines.cli import main

    answer = CliRunner().invoke(
        main, ["generate", "--frames", "2", "--no-credentials", "--out", str(tmp_path / "made")]
    )
    assert answer.exit_code == 0, answer.output
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["seed0000.mp4"]


@pytest.mark.parametrize("how", ["text", "no card", "another schema", "a tensor less", "a key more"])
def test_what_is_no_packed_model_is_one_line(how, generator, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "m.safetensors"
    config = to_dict(tiny().model)
    card = {"schema": 2 if how == "another schema" else 1, "model": config}
    if how == "a key more":
        config["colour"] = "red"
    tensors = dict(generator.state_dict())
    if how == "a tensor less":
        del tensors["decoder.net.0.weight"]
    save_file(tensors, path, None if how == "no card" else {packed.KEY: json.dumps(card)})
    if how == "text":
        path.write_text("hello")
    with pytest.raises(ValueError, match="is damaged, or no model of `pv3d pack`") as caught:
        open_model(str(path), "unused")
    assert "\n" not in str(caught.value)


def test_weights_too_large_for_half_precision_are_refused(generator, tmp_path):
    large = Generator(tiny().model)
    large.load_state_dict(generator.state_dict())
    with torch.no_grad():
        large.decoder.net[0].weight[0] = 1e6
    with pytest.raises(ValueError, match=r"decoder\.net\.0\.weight is not finite in half precision"):
        pack(str(checkpoint_of(large, tmp_path)), tmp_path / "m.safetensors", tracking="unused")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.skipif(not PORTRAITS.is_file(), reason="this checkout ships no model")
def test_the_model_that_ships_is_small_and_makes_pictures():
    assert PORTRAITS.stat().st_size <= MOST_BYTES
    made = next(Model.load().generate([0], times=np.zeros(1, np.float32))).pictures["image"]
    assert made.std() > 10
