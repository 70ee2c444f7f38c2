"""The network by random weights in the published layout. The real checkpoint is its user's to bring."""

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("av")

import torch

from infra.weights import WeightsError
from stages.backends import deep3d
from stages.backends.deep3d import HEADS, Deep3D, read_checkpoint
from stages.base import Drop
from stages.cameras import FitCameras, misses
from stages.clip import Clip
from stages.deep3d import camera_from_network
from stages.face_model import LANDMARKS, RIGID
from stages.pnp import fit_poses
from stages.rotations import rotation_from_euler
from stages.video import write_video

RANDOM = np.random.default_rng(0)
BLOCKS = (3, 4, 6, 3)


def published_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes that the checkpoint's `net_recon` is documented to have."""
    def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias", "running_mean", "running_var")
        return {**{f"{name}.{part}": (size,) for part in parts}, f"{name}.num_batches_tracked": ()}

    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm("backbone.bn1", 64)}
    before = 64
    for number, blocks in enumerate(BLOCKS, start=1):
        inner = 32 * 2**number
        for block in range(blocks):
            at = f"backbone.layer{number}.{block}"
            for index, (out, into, side) in enumerate(
                [(inner, before, 1), (inner, inner, 3), (4 * inner, inner, 1)], start=1
            ):
                shapes[f"{at}.conv{index}.weight"] = (out, into, side, side)
                shapes |= norm(f"{at}.bn{index}", out)
            if block == 0:
                shapes[f"{at}.downsample.0.weight"] = (4 * inner, before, 1, 1)
                shapes |= norm(f"{at}.downsample.1", 4 * inner)
            before = 4 * inner
    for number, size in enumerate((80, 64, 80, 3, 27, 2, 1)):
        at = f"final_layers.{number}"
        shapes |= {f"{at}.weight": (size, 2048, 1, 1), f"{at}.bias": (size,)}
    return shapes


def random_state() -> dict[str, "torch.Tensor"]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_layout().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            state[name] = torch.ones(shape)
        else:
            fan_in = int(np.prod(shape[1:])) or 1
            state[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    content = {"net_recon": random_state(), "opt_00": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    torch.save(content, folder / "epoch_20.pth")
    return folder


@pytest.fixture
def model(weights: Path, monkeypatch) -> Deep3D:
    monkeypatch.setenv("PV3D_WEIGHTS", str(weights))
    return Deep3D()


def pictures(count: int) -> np.ndarray:
    return RANDOM.integers(0, 255, (count, 224, 224, 3), np.uint8)


def test_the_published_layout_is_read_whole(weights: Path) -> None:
    network = read_checkpoint(weights / "epoch_20.pth")
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_layout()
    assert not network.training


def test_the_network_is_the_one_that_torch_functions_spell_out(model: Deep3D) -> None:
    """ResNet-50 written a second time, flat, from the layout."""
    state, run = random_state(), torch.nn.functional
    def block(x, name, stride):
        def norm(x, name):
            parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            return run.batch_norm(x, *parts)
        y = run.relu(norm(run.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
        y = run.relu(norm(run.conv2d(y, state[f"{name}.conv2.weight"], None, stride, 1), f"{name}.bn2"))
        y = norm(run.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
        down = f"{name}.downsample"
        if f"{down}.0.weight" in state:
            x = norm(run.conv2d(x, state[f"{down}.0.weight"], None, stride), f"{down}.1")
        return run.relu(x + y)

    given = pictures(2)
    x = torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255
    x = run.conv2d(x, state["backbone.conv1.weight"], None, 2, 3)
    first = [state[f"backbone.bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = run.max_pool2d(run.relu(run.batch_norm(x, *first)), 3, 2, 1)
    for number, blocks in enumerate(BLOCKS, start=1):
        for index in range(blocks):
            x = block(x, f"backbone.layer{number}.{index}", 2 if index == 0 and number > 1 else 1)
    x = x.mean((2, 3))
    heads = [x @ state[f"final_layers.{i}.weight"][:, :, 0, 0].T + state[f"final_layers.{i}.bias"]
             for i in range(len(HEADS))]  # fmt: skip
    expected = torch.cat(heads, 1).numpy()
    assert expected.shape == (2, 257)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(model.coefficients(given), expected, atol=1e-4 * scale)


def test_angle_and_translation_are_the_documented_columns(model: Deep3D, monkeypatch) -> None:
    monkeypatch.setattr(deep3d, "BATCH", 2)
    given = pictures(5)
    angles, shifts = model.poses(iter(given))
    every = model.coefficients(given)
    np.testing.assert_allclose(angles, every[:, 224:227], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shifts, every[:, 254:257], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fault", ["text", "no entry", "missing", "extra", "shape", "pickle"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path, state = tmp_path / "epoch_20.pth", random_state()
    if fault == "missing":
        del state["backbone.layer3.5.conv2.weight"]
    elif fault == "extra":
        state["backbone.fc.weight"] = torch.zeros(1000, 2048)
    elif fault == "shape":
        state["final_layers.3.weight"] = torch.zeros(4, 2048, 1, 1)
    content = {"text": None, "no entry": {"state_dict": state}, "pickle": {"net_recon": Path("x")}}
    if fault == "text":
        path.write_text("no checkpoint")
    else:
        torch.save(content.get(fault, {"net_recon": state}), path)
    with pytest.raises(WeightsError) as refused:
        read_checkpoint(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_the_checkpoint_the_cure_is_named(tmp_path: Path, store, monkeypatch) -> None:
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match=r"epoch_20\.pth missing"):
        FitCameras(backend="deep3d").setup(store)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """Five frames of noise, of which the crop shows the middle."""
    write_video(tmp_path / "noise.mp4", list(RANDOM.integers(0, 255, (5, 300, 400, 3), np.uint8)), 25)
    rotation = rotation_from_euler(5, 2, 0)
    seen = (LANDMARKS - 2.86 * -rotation[:, 2]) @ rotation
    points = 4.2647 * 256 * seen[:, :2] / seen[:, 2:] + 127.5 + np.array([72, 22])
    return Clip(
        id="a", source="noise.mp4", video=str(tmp_path / "noise.mp4"), fps=25.0, width=400, height=300,
        frame_times_s=np.arange(5) / 25, smooth_landmarks=np.tile(points, (5, 1, 1)).astype(np.float32),
        crop_transforms=np.tile(np.array([[1.0, 0, -72], [0, 1, -22]]), (5, 1, 1)), crop_size=256,
    )  # fmt: skip


def test_the_stage_sees_the_source_frames_and_rejects_what_random_weights_say(
    clip: Clip, store, weights: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PV3D_WEIGHTS", str(weights))
    stage = FitCameras(backend="deep3d")
    stage.setup(store)
    with pytest.raises(Drop, match="camera not found"):
        list(stage.process(clip))


@pytest.mark.parametrize("mode", ["orig", "cor", "simplify"])
def test_a_network_that_is_right_gives_the_cameras_that_pnp_finds(
    clip: Clip, store, weights: Path, monkeypatch, mode: str
) -> None:
    """The heads answer what the true pose is; all between, picture to camera, is the stage's own way."""
    monkeypatch.setenv("PV3D_WEIGHTS", str(weights))
    stages = [FitCameras(backend=backend, distance=mode) for backend in ("pnp", "deep3d")]
    for stage in stages:
        stage.setup(store)
    points = (clip.smooth_landmarks - (72, 22))[:, RIGID]
    rotations, positions, _ = fit_poses(points, LANDMARKS[RIGID], 256)
    angles, shifts = network_answer(rotations[0], positions[0])
    network = stages[1]._network
    assert network is not None
    heads = network._network.final_layers
    for number, answer in ((3, angles), (5, shifts[:2]), (6, shifts[2:])):
        torch.nn.init.zeros_(heads[number].weight)
        heads[number].bias.data = torch.tensor(answer, dtype=torch.float32)
    (pnp,), (ours,) = (list(stage.process(clip)) for stage in stages)
    np.testing.assert_allclose(ours.cameras, pnp.cameras, atol=1e-4)


def network_answer(rotation: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles and translation that mean this camera."""
    from stages.deep3d import DISTANCE, OFFSET, WORLD_PER_UNIT, angles_from_rotation, rotation_from_angles

    angles = angles_from_rotation(rotation)
    shift = -rotation_from_angles(angles).T @ ((position - OFFSET) / WORLD_PER_UNIT) + (0, 0, DISTANCE)
    again = camera_from_network(angles, shift)
    np.testing.assert_allclose(again[1], position, atol=1e-9)
    return angles, shift


def test_a_camera_that_is_off_is_measured_to_be_so(clip: Clip) -> None:
    points = (clip.smooth_landmarks - (72, 22))[:, RIGID]
    rotations, positions, errors = fit_poses(points, LANDMARKS[RIGID], 256)
    true = misses(rotations, positions, points, LANDMARKS[RIGID], 256)
    np.testing.assert_allclose(true, errors, atol=1e-6)
    off = [misses(rotations @ rotation_from_euler(a, 0, 0) @ np.diag([1, -1, -1]), positions, points,
                  LANDMARKS[RIGID], 256).max() for a in (1, 2, 4)]  # fmt: skip
    assert all(a < b for a, b in itertools.pairwise([true.max(), *off]))
