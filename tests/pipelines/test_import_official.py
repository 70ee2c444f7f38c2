"""The command around the reader; the reader's own tests are in tests/model/test_official.py."""

import pytest
import torch

from model.config import variant, with_changes
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from pipelines.checkpoints import load_generator
from pipelines.import_official import import_official


@pytest.fixture
def checkpoint(tmp_path):
    """A file of the authors' layout, small."""
    torch.manual_seed(0)
    config = with_changes(
        variant("tiny").model, {"plane_axes": "eg3d_compat", "superresolution.input_resolution": 16}
    )
    networks = {
        "generator": Generator(config), "generator_ema": Generator(config),
        "img_discriminator": ImageDiscriminator(config), "vid_discriminator": VideoDiscriminator(config),
    }  # fmt: skip
    state = {f"{name}.{n}": t for name, network in networks.items() for n, t in network.state_dict().items()}
    rendering = {"depth_resolution": 12, "depth_resolution_importance": 12}
    settings = {"model_config": {"rendering_kwargs": rendering}, "training": {"rendering_resolution": 32}}
    path = tmp_path / "model_7.ckpt"
    torch.save({"model": state, "config": settings, "num_updates": 7, "num_samples": 112}, path)
    return path


def test_an_imported_checkpoint_is_one_that_generation_accepts(checkpoint, tmp_path, store):
    out = tmp_path / "made" / "voxceleb"
    summary, text = import_official(checkpoint, out)
    generator, config = load_generator(store, out)
    official = torch.load(checkpoint, weights_only=True)["model"]
    weight = "decoder.net.0.weight"
    assert torch.equal(generator.state_dict()[weight], official[f"generator_ema.{weight}"])
    assert config.plane_axes == "eg3d_compat"
    assert summary["step"] == 7
    assert "generator_ema" in text
    assert [path.name for path in out.parent.iterdir()] == ["voxceleb"]


def test_a_folder_that_exists_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        import_official(checkpoint, tmp_path / "out")


def test_a_truncated_checkpoint_leaves_nothing_behind(checkpoint, tmp_path):
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"cut\.ckpt"):
        import_official(cut, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
