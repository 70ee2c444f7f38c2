import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from pipelines.benches.metrics import DIFFERENT, FRAMES, Files, i3d, run, write  # noqa: E402


def test_the_network_has_the_layers_of_i3d() -> None:
    """Parameters without biases and norms, as the papers' table of widths gives them: 12.7 million."""
    network = i3d(1.0)
    kernels = sum(p.numel() for p in network.parameters() if p.ndim == 5)
    assert 12.5e6 < kernels < 12.9e6
    with torch.inference_mode():
        answer = i3d(0.125).eval()(torch.zeros(1, 3, FRAMES, 224, 224))
    assert answer.shape == (1, 400)


def test_more_videos_than_files_are_the_same_again(tmp_path) -> None:
    for number in range(DIFFERENT):
        write(tmp_path / f"{number}.mp4", number, 64)
    levels = list(Files(tmp_path, DIFFERENT + 2).map(lambda video: (video.shape, video.mean())))
    assert levels[0][0] == (FRAMES, 64, 64, 3)
    assert levels[DIFFERENT:] == levels[:2]
    assert len(np.unique([level for _, level in levels])) == DIFFERENT


@pytest.mark.parametrize("given", [{"videos": 0}, {"few": 5, "many": 5}, {"size": 33}])
def test_what_measures_nothing_is_refused(given) -> None:
    with pytest.raises(ValueError, match="bench metrics: give"):
        run(**given)
