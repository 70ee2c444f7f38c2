"""The golden folder: data of the official networks (see its README). Tests enumerate its arrays."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import (
    DiscriminatorConfig,
    ModelConfig,
    MotionConfig,
    Recipe,
    RenderingConfig,
    SuperResolutionConfig,
)

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"


def golden_folder() -> Path | None:
    """The folder, or None where the default one is absent; a wrong PV3D_GOLDEN is an error, never a skip."""
    named = os.environ.get("PV3D_GOLDEN")
    folder = Path(named) if named else DEFAULT
    if not named and not folder.is_dir():
        return None
    return folder


class Golden:
    """The folder's arrays as tensors, and its sizes as a ModelConfig."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes = json.loads((folder / "config.json").read_text())
        self.cases = json.loads((folder / "ops_cases.json").read_text())
        self._files: dict[str, dict[str, torch.Tensor]] = {}

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        if name not in self._files:
            with np.load(self.folder / f"{name}.npz") as data:
                self._files[name] = {key: torch.from_numpy(np.array(data[key])) for key in data.files}
        return self._files[name]

    @property
    def config(self) -> ModelConfig:
        s = self.sizes
        auto = s["ray_start"] == "auto"
        return ModelConfig(
            img_resolution=s["img_resolution"], z_dim=s["z_dim"], z_m_dim=s["z_dim"], w_dim=s["w_dim"],
            mapping_layers=s["mapping_layers"], mapping_lr_multiplier=s["mapping_lr_mul"],
            w_avg_beta=s["w_avg_beta"], c_scale=s["c_scale"], channel_base=s["channel_base"],
            channel_max=s["channel_max"], plane_resolution=s["plane_resolution"],
            plane_features=s["plane_channels"] // 3, decoder_hidden=s["decoder_hidden"],
            motion=MotionConfig(blocks=s["motion_layers"]),
            rendering=RenderingConfig(
                resolution=s["neural_rendering_resolution"], samples_coarse=s["depth_resolution"],
                samples_fine=s["depth_resolution_importance"], ray_start=None if auto else s["ray_start"],
                ray_end=None if auto else s["ray_end"], box_warp=s["box_warp"],
            ),
            superresolution=SuperResolutionConfig(
                input_resolution=s["img_resolution"] // 4, channels=tuple(s["sr_channels"]),
                conv_clamp=256.0 if s["sr_num_fp16_res"] > 0 else None,
            ),
            discriminator=DiscriminatorConfig(
                channel_base=s["d_channel_base"], channel_max=s["d_channel_max"],
                mapping_layers=s["d_mapping_layers"], conv_clamp=s["d_conv_clamp"],
                minibatch_group_image=s["mbstd_group_size"], minibatch_group_video=s["mbstd_group_size"],
                frame_order="video_major",
            ),
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        s = self.sizes
        return Recipe(lambda_vid=s["lambda_vid"], lambda_reg=s["lambda_reg"], r1_gamma=s["r1_gamma"])

    def load(self, network: torch.nn.Module, prefix: str) -> torch.nn.Module:
        """The folder's weights, strictly."""
        start = prefix + "/"
        state = {k.removeprefix(start): v for k, v in self.arrays("weights").items() if k.startswith(start)}
        network.load_state_dict(state, strict=True)
        return network


@pytest.fixture(scope="session")
def golden() -> Golden:
    folder = golden_folder()
    if folder is None:
        pytest.skip(f"no golden fixtures: {DEFAULT} is absent and PV3D_GOLDEN is not set")
    return Golden(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden_array` runs once for every array of the npz that the test module names in GOLDEN_FILE,
    `golden_case` once for every case of ops_cases.json."""
    folder = golden_folder()
    if "golden_array" in metafunc.fixturenames:
        names = []
        if folder is not None:
            with np.load(folder / f"{metafunc.module.GOLDEN_FILE}.npz") as data:
                names = list(data.files)
        metafunc.parametrize("golden_array", names)
    if "golden_case" in metafunc.fixturenames:
        names = []
        if folder is not None:
            with np.load(folder / "ops.npz") as data:
                names = sorted({"/".join(name.split("/")[:2]) for name in data.files})
        metafunc.parametrize("golden_case", names)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def agree(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-4, atol: float = 1e-4
) -> None:
    """Same shape and same values."""
    assert tuple(ours.shape) == tuple(theirs.shape), (
        f"{name}: {tuple(ours.shape)} is not {tuple(theirs.shape)}"
    )
    torch.testing.assert_close(
        ours.detach().double(),
        theirs.double(),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


@pytest.fixture(name="agree")
def agree_fixture():
    return agree
