"""FAN through the real library, with weights that the test writes where the library looks for them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra import weights
from infra.weights import WeightsError
from stages import backends

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than all of this
pytest.importorskip("face_alignment")
torch = pytest.importorskip("torch")

PATH = "stages.backends.fan:FanFaces"


@pytest.fixture
def home(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where FAN's file belongs, in a $TORCH_HOME of one's own; YuNet's weights are those of the test data."""
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if weights.find("yunet") is None:
        pytest.skip("no weights of YuNet in the test data")
    path = weights.torch_hub() / weights.entry("fan").file
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> torch.nn.Module:
    from face_alignment.models import FAN

    torch.manual_seed(0)
    return FAN(4)


def finds_the_brightest_spot(net: torch.nn.Module) -> torch.nn.Module:
    """The same network with weights that carry the brightness of the picture into all 68 heat maps."""
    for name, values in net.state_dict().items():
        if "bn" in name or "downsample.0" in name:
            continue                             # batch norms are near identity as they are made
        values.zero_()
    with torch.no_grad():
        net.conv1.weight[0, :, 3, 3] = 1
        net.conv2.downsample[2].weight[0, 0] = net.conv4.downsample[2].weight[0, 0] = 1
        net.conv_last3.weight[0, 0] = 1
        net.l3.weight[:, 0] = 1
    return net


@pytest.mark.usefixtures("one_thread")
def test_random_weights_give_68_points_and_a_batch_gives_the_same(home: Path) -> None:
    torch.save(network().state_dict(), home)
    faces = backends.load(PATH)
    noise = np.random.default_rng(0).integers(0, 255, (2, 300, 400, 3), np.uint8)
    frames, boxes = list(noise), [(100.0, 50.0, 200.0, 190.0), (220.5, 90.0, 290.0, 180.0)]
    faces.start()
    points = np.stack([faces.landmarks(f, b) for f, b in zip(frames, boxes, strict=True)])
    assert points.shape == (2, 68, 2)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()
    np.testing.assert_allclose(faces.landmarks_many(frames, boxes), points, atol=0.51)  # px of a 512 px tile
    assert not faces.follows
    assert faces.points68 is None


@pytest.mark.usefixtures("one_thread")
def test_points_come_back_to_where_they_are_in_the_frame(home: Path) -> None:
    torch.save(finds_the_brightest_spot(network()).state_dict(), home)
    faces = backends.load(PATH)
    spots = [(150.0, 120.0), (610.0, 300.0), (330.0, 95.0)]
    boxes = [(100.0, 50.0, 200.0, 190.0), (380.0, 100.0, 700.0, 560.0), (310.0, 80.0, 345.0, 125.0)]
    frames = [np.zeros((600, 800, 3), np.uint8) for _ in spots]
    for frame, spot, box in zip(frames, spots, boxes, strict=True):
        radius = round(0.04 * (box[3] - box[1]))
        cv2.circle(frame, (round(spot[0]), round(spot[1])), radius, (255, 255, 255), -1)
    for points, spot, box in zip(faces.landmarks_many(frames, boxes), spots, boxes, strict=True):
        assert np.abs(points - np.array(spot)).max() < 0.04 * (box[3] - box[1])


def test_a_missing_file_is_named_with_its_licence_and_nothing_is_fetched(home: Path) -> None:
    with pytest.raises(WeightsError, match=r"2DFAN4.* missing in .*; get it there from .*BSD") as error:
        backends.load(PATH)
    assert "\n" not in str(error.value)
    assert list(home.parent.iterdir()) == []


def test_a_file_of_something_else_is_refused_and_not_executed(home: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(home.parent / "executed"),)

    torch.save({"conv1.weight": torch.zeros(2)}, home)
    with pytest.raises(WeightsError, match="not FAN's network of 68 points; remove it"):
        backends.load(PATH)
    for content in (b"", b"hello world" * 100, pickle.dumps(Trap(), protocol=2)):
        home.write_bytes(content)
        with pytest.raises(WeightsError, match="not FAN's network of 68 points; remove it"):
            backends.load(PATH)
    assert not (home.parent / "executed").exists()
