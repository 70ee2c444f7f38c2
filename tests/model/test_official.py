"""Import of the authors' checkpoints, from files that we build: no released file is at hand."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import to_dict, variant
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from model.official import NETWORKS, read_official

SHAPES = Path(__file__).parents[3] / "shared" / "reference" / "full512_state_dict_shapes.json"


@pytest.fixture
def config():
    from model.config import with_changes

    small = {"plane_axes": "eg3d_compat", "superresolution.input_resolution": 16}
    return with_changes(variant("tiny").model, small)


@pytest.fixture
def content(config):
    torch.manual_seed(0)
    built = {"generator": Generator(config), "generator_ema": Generator(config),
             "img_discriminator": ImageDiscriminator(config),
             "vid_discriminator": VideoDiscriminator(config)}  # fmt: skip
    model = {f"{theirs}.{n}": t for theirs in NETWORKS for n, t in built[theirs].state_dict().items()}
    rendering = {"depth_resolution": 12, "depth_resolution_importance": 12, "ray_start": 2.25, "ray_end": 3.3,
                 "box_warp": 1.0, "c_scale": 1.0}  # fmt: skip
    settings = {
        "model_config": {"rendering_kwargs": rendering},
        "training": {"rendering_resolution": 32, "r1_gamma": 4.0},
    }
    model["pl_mean"] = torch.zeros([])
    return {"model": model, "config": settings, "num_updates": 7, "num_samples": 112,
            "optimizer": {"generator": {}}}  # fmt: skip


def save(content, folder):
    path = folder / "model_7.ckpt"
    torch.save(content, path)
    return path


def test_an_official_checkpoint_loads_strictly_into_our_networks(content, config, tmp_path):
    read = read_official(save(content, tmp_path))
    generator = Generator(read.variant.model)
    generator.load_state_dict(read.networks["generator_ema"], strict=True)
    assert torch.equal(
        generator.decoder.net[0].weight, content["model"]["generator_ema.decoder.net.0.weight"]
    )
    VideoDiscriminator(read.variant.model).load_state_dict(read.networks["video_discriminator"], strict=True)
    ours, theirs = to_dict(read.variant.model), to_dict(config)
    for groups in ("minibatch_group_image", "minibatch_group_video"):
        ours["discriminator"].pop(groups)
        theirs["discriminator"].pop(groups)
    assert ours == theirs
    assert (read.step, read.samples, read.variant.recipe.r1_gamma) == (7, 112, 4.0)


def test_the_report_names_what_is_left_over_and_what_was_assumed(content, tmp_path):
    report = read_official(save(content, tmp_path)).report()
    assert "model.pl_mean" in report
    assert "optimizer" in report
    assert "density_reg 0.6" in report
    assert "ray_start" not in report


def test_a_ddp_prefix_is_taken_off(content, tmp_path):
    content["model"] = {
        k.replace("vid_discriminator.", "vid_discriminator.module."): v for k, v in content["model"].items()
    }
    assert "b4.conv.weight" in read_official(save(content, tmp_path)).networks["video_discriminator"]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_changed_tensor_is_refused_by_name(content, tmp_path, change):
    name = "img_discriminator.b4.conv.weight"
    if change == "missing":
        del content["model"][name]
    elif change == "unknown":
        content["model"]["img_discriminator.b4.extra"] = torch.zeros(3)
    else:
        content["model"][name] = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"image_discriminator.*b4\.(conv|extra)"):
        read_official(save(content, tmp_path))


def test_a_truncated_file_is_refused(content, tmp_path):
    path = save(content, tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated"):
        read_official(path)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trap",))


def test_code_in_a_checkpoint_is_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content["config"] = Trap()
    with pytest.raises(ValueError, match=r"tensors alone \(it names (posix|nt)\.mkdir\)") as told:
        read_official(save(content, tmp_path))
    assert "weights_only" not in str(told.value)         # PyTorch's advice is to run it
    assert not (tmp_path / "trap").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "foreign.ckpt"
    torch.save({"model": {"backbone.conv1.weight": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match="holds no generator_ema"):
        read_official(path)
    torch.save({"state": 1}, path)
    with pytest.raises(ValueError, match="no 'model' table"):
        read_official(path)


@pytest.mark.slow
def test_the_published_512_model_imports(tmp_path):
    if not SHAPES.is_file():
        pytest.skip(f"{SHAPES} is absent")
    shapes = json.loads(SHAPES.read_text())
    keys = {"generator": "G", "generator_ema": "G", "img_discriminator": "Dimg", "vid_discriminator": "Dvid"}
    model = {f"{theirs}.{name}": torch.zeros(entry["shape"], dtype=torch.float32)
             for theirs, key in keys.items() for name, entry in shapes[key].items()}  # fmt: skip
    read = read_official(save({"model": model, "config": {}}, tmp_path))
    assert to_dict(read.variant.model) == to_dict(variant("voxceleb_512").model)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(content, tmp_path):
    name = "generator.backbone.synthesis.b4.torgb.bias"
    whole = torch.zeros(96)
    for value in (whole[:1].expand(10**12), whole.to(torch.int64), whole.to_sparse()):
        changed = {**content, "model": {**content["model"], name: value}}
        with pytest.raises(ValueError, match=r"b4\.torgb\.bias is no plain tensor"):
            read_official(save(changed, tmp_path))


def test_entries_of_another_kind_are_refused_or_left_over(content, tmp_path):
    read = read_official(save({**content, 3: 1, "model": {**content["model"], 5: torch.zeros(1)}}, tmp_path))
    assert {"3", "model.5"} <= set(read.left_over)
    for key, value in (("num_updates", [1]), ("num_samples", float("inf")), ("num_updates", torch.zeros(3))):
        with pytest.raises(ValueError, match=f"{key} is .*no count"):
            read_official(save({**content, key: value}, tmp_path))
    with pytest.raises(ValueError, match="cannot be"):
        read_official(save({**content, "config": {"rendering_resolution": float("inf")}}, tmp_path))


def test_damaged_files_are_refused_or_read(content, tmp_path):
    path = save(content, tmp_path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    head = whole.index(b"PK", 4)                         # data.pkl, the first member, steers the reading
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, head, random.integers(1, 20)):
            data[at] = random.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):            # in one line, and nothing else
            read_official(path)
