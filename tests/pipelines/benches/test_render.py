import pytest

pytest.importorskip("torch")
pytest.importorskip("viser")
pytest.importorskip("cv2")

from pipelines.benches.render import run


def test_a_moving_camera_costs_a_picture_without_mapping_and_backbone():
    said = []
    figures = run(seconds=0.1, progress=said.append)["figures"]
    bound = figures["full_ms"] - figures["mapping_and_backbone_ms"]
    assert figures["moving_camera_over_bound"] == pytest.approx(bound / figures["moving_camera_ms"])
    assert figures["moving_camera_ms"] < figures["full_ms"]
    assert 0 < figures["first_picture_s"] < 30
    assert len(said) == 1
