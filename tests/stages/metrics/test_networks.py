"""Networks in files: what may run, under which name, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from metric_files import PictureNetwork, VideoNetwork, onnx_mean, script, seeded  # noqa: E402

from infra import weights  # noqa: E402
from infra.weights import WeightsError  # noqa: E402
from stages.metrics.networks import find_network, state_dict  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_only_the_listed_bytes_give_a_figure_its_plain_name(tmp_path: Path, monkeypatch) -> None:
    path = script(tmp_path, seeded(VideoNetwork))
    network = find_network("i3d", {"i3d": str(path)}, None)
    assert (network.listed, network.figure("fvd")) == (False, "fvd/net")
    listed = replace(weights.entry("i3d"), sha256=network.sha256)
    monkeypatch.setattr(weights, "FILES", (listed, *weights.FILES[1:]))
    assert find_network("i3d", {"i3d": str(path)}, None).figure("fvd") == "fvd"
    assert find_network("i3d", {}, path).figure("fvd") == "fvd"


def test_a_file_in_the_place_of_the_listed_one_with_other_bytes_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path, seeded(VideoNetwork), weights.entry("i3d").file)
    with pytest.raises(WeightsError, match=r"its sha256 is [0-9a-f]{64}, not bec6519f"):
        find_network("i3d", {}, path)


def test_every_network_of_a_metric_is_pinned() -> None:
    assert all(len(weights.entry(name).sha256) == 64 for name in ("i3d", "inception", "arcface", "lpips"))


def test_torchscript_and_onnx_answer_as_they_should(tmp_path: Path) -> None:
    made = seeded(PictureNetwork)
    x = np.random.default_rng(0).uniform(0, 255, (3, 3, 16, 16)).astype(np.float32)
    found = find_network("inception", {"inception": str(script(tmp_path, made))}, None)(x)
    with torch.no_grad():
        expected = made(torch.from_numpy(x), return_features=True).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    path = onnx_mean(tmp_path / "mean.onnx", ["n", 3, 16, 16], [2, 3])
    network = find_network("inception", {"inception": str(path)}, None)
    assert network.side == 16
    np.testing.assert_allclose(network(x), x.mean(axis=(2, 3)), rtol=1e-5)


def test_a_state_dict_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    torch.save(seeded(VideoNetwork).state_dict(), path)
    assert state_dict(path)
    old = tmp_path / "old.pth"
    torch.save(seeded(VideoNetwork).state_dict(), old, _use_new_zipfile_serialization=False)
    assert state_dict(old)
    for file in (path, old):
        with pytest.raises(WeightsError, match="neither TorchScript nor ONNX; export the network"):
            find_network("i3d", {"i3d": str(file)}, None)(np.zeros((1, 3, 4, 8, 8), np.float32))


def test_other_inputs_answers_and_files_are_refused_in_one_line(tmp_path: Path) -> None:
    zeros = np.zeros((1, 3, 4, 32, 32), np.float32)

    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as error:
            find_network("i3d", {"i3d": str(path)}, None)(zeros)
        assert "\n" not in str(error.value)
        return str(error.value)

    other = "does not take [1, 3, 4, 32, 32]"
    assert other in message(script(tmp_path, seeded(PictureNetwork), "picture.pt"))
    assert other in message(onnx_mean(tmp_path / "small.onnx", [1, 3], [1]))
    (tmp_path / "none.onnx").write_bytes(b"nothing")
    assert "cannot read it" in message(tmp_path / "none.onnx")
    broken = seeded(VideoNetwork)
    with torch.no_grad():
        broken.last.bias[0] = float("nan")
    assert "not finite" in message(script(tmp_path, broken, "nan.pt"))
    assert "no file" in message(tmp_path / "missing.pt")


def test_a_file_that_changes_under_an_evaluation_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path, seeded(VideoNetwork))
    network = find_network("i3d", {"i3d": str(path)}, None)
    script(tmp_path, seeded(VideoNetwork, 1))
    with pytest.raises(WeightsError, match="has changed"):
        network(np.zeros((1, 3, 4, 8, 8), np.float32))
