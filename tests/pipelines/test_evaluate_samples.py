"""Evaluation with feature networks: held-out people, H.264, kept statistics, any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from metric_files import PictureNetwork, VideoNetwork, script, seeded  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from tiny_dataset import SIZE, clip_in, picture, write  # noqa: E402

from infra.storage import FolderStorage  # noqa: E402
from model import camera, clips  # noqa: E402
from model.config import tiny  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.evaluate import Makers, Subject, figures, result_name  # noqa: E402
from pipelines.evaluate_samples import Here, Studio, held_out  # noqa: E402
from pipelines.models import OpenModel  # noqa: E402
from pipelines.settings import EvaluateSettings  # noqa: E402
from stages.dataset import Dataset, open_dataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
DISTANCES = ("stages.metrics.fvd", "stages.metrics.fid", "stages.metrics.kid")
HELD_OUT = {"split": "test"}


def opened() -> OpenModel:
    """A generator that is untrained, but dense enough that rays end at a surface."""
    torch.manual_seed(0)
    made = Generator(tiny().model)
    with torch.no_grad():
        made.decoder.net[2].bias[0] += 20
    return OpenModel("tiny", made.eval(), clips, camera)


SUBJECT = Subject("0" * 64, "tiny", 24, "train/tiny/24", opened)


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    """A dataset of clips to train on, of held-out people, and of one who is too short."""
    made = FolderStorage(tmp_path / "store")
    kept = [clip_in(made, f"t{number}") for number in range(3)]
    away = [clip_in(made, f"h{number}", listed=HELD_OUT) for number in range(4)]
    write(made, [*kept, *away, clip_in(made, "short", frames=9, listed=HELD_OUT)])
    return made


@pytest.fixture
def settings(tmp_path: Path) -> EvaluateSettings:
    networks = {
        "i3d": str(script(tmp_path, seeded(VideoNetwork), "video.pt")),
        "inception": str(script(tmp_path, seeded(PictureNetwork), "picture.pt")),
    }
    return EvaluateSettings(metrics=DISTANCES, clips=2, videos=3, networks=networks)


def changed(settings: EvaluateSettings, **values: Any) -> EvaluateSettings:
    return EvaluateSettings(**{**settings.model_dump(), **values})


def values_of(result: dict[str, Any]) -> dict[str, Any]:
    return {name: (value["value"], value["interval"]) for name, value in result["metrics"].items()}


def test_distances_are_measured_against_held_out_people_and_their_statistics_kept(store, settings) -> None:
    result = figures(store, settings, SUBJECT)
    assert set(result["metrics"]) == {"fvd/video", "fid/picture", "kid/picture"}
    for value in result["metrics"].values():
        assert value["samples"] == 3
        assert "3 real videos" in value["note"]              # of four that are long enough: evaluate.videos
        assert np.isfinite(value["value"])
    assert len(list(store.list("statistics"))) == 2
    again = figures(store, changed(settings, every=2), SUBJECT)
    assert again == result                                   # read, not measured

    lossless = figures(store, changed(settings, h264=False), SUBJECT)
    assert values_of(lossless) != values_of(result)
    assert len(list(store.list("statistics"))) == 4


def in_both_modes(store, settings: EvaluateSettings, share: bool) -> list[dict[str, Any]]:
    """The results by the paper's and the official definition, measured anew."""
    for key in [*store.list("statistics"), *store.list("evaluate")]:
        store.delete(key)
    modes = [changed(settings, mode=mode) for mode in ("paper", "official")]
    if not share:
        return [figures(store, mode, SUBJECT) for mode in modes]
    with Makers(store, SUBJECT, modes[0]) as makers:
        return [figures(store, mode, SUBJECT, makers=makers) for mode in modes]


def test_both_definitions_share_their_videos_and_nothing_else(
    store, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    generated = Studio._generated
    monkeypatch.setattr(Studio, "_generated", lambda self, n: made.append(n) or generated(self, n))
    every = changed(settings, metrics=("stages.metrics.fvd", "stages.metrics.warping"))
    alone = in_both_modes(store, every, share=False)
    assert made == [*range(settings.videos)] * 2
    made.clear()
    assert in_both_modes(store, every, share=True) == alone
    assert made == [*range(settings.videos)]
    assert values_of(alone[0])["warping_error"] != values_of(alone[1])["warping_error"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_give_the_same_figures_to_the_last_bit(store, settings) -> None:
    every = changed(settings, metrics=tuple(f"stages.metrics.{m}" for m in ("fvd", "chamfer", "warping")))
    alone = in_both_modes(store, every, share=False)
    together = in_both_modes(store, changed(every, workers=2), share=True)
    assert [values_of(result) for result in together] == [values_of(result) for result in alone]
    assert set(together[0]["metrics"]) == {"chamfer", "warping_error", "fvd/video"}


def test_a_result_has_another_name_for_other_files_or_other_real_people(store, settings, tmp_path) -> None:
    first = result_name(SUBJECT, settings, store)
    assert result_name(SUBJECT, changed(settings, workers=3), store) == first
    script(tmp_path, seeded(VideoNetwork, 1), "video.pt")
    other = result_name(SUBJECT, settings, store)
    assert other != first
    blind = changed(settings, networks={})
    without = result_name(SUBJECT, blind, store)
    write(store, [clip_in(store, "new", listed=HELD_OUT)])
    assert result_name(SUBJECT, settings, store) != other
    assert result_name(SUBJECT, blind, store) == without     # nothing looks at real people there


def test_more_frames_than_the_model_makes_are_refused(store, settings) -> None:
    with pytest.raises(ValueError, match="windows of 16 frames"):
        figures(store, changed(settings, frames=18), SUBJECT)
    assert not list(store.list("evaluate"))


def test_without_held_out_people_the_reason_says_how_to_get_some(tmp_path: Path, settings) -> None:
    store = FolderStorage(tmp_path / "other")
    write(store, [clip_in(store, f"t{number}") for number in range(2)])
    value = figures(store, settings, SUBJECT)["metrics"]["fvd"]
    assert value["value"] is None
    assert "stages.WriteShards.held_out" in value["reason"]
    write(store, [clip_in(store, "t1"), clip_in(store, "h", frames=9, listed=HELD_OUT)])
    value = figures(store, settings, SUBJECT)["metrics"]["fvd"]
    assert "no clip of held-out people has 16 frames" in value["reason"]


def studio(store: FolderStorage, settings: EvaluateSettings, folder: Path) -> Studio:
    folder.mkdir()
    return Studio(opened(), settings, folder, open_dataset(store))


def test_real_videos_are_windows_of_the_clips_and_come_through_h264(store, settings, tmp_path: Path) -> None:
    exact = studio(store, changed(settings, h264=False), tmp_path / "a")
    for number, sample in enumerate(exact.held_out[0]):
        video = exact.get("real", number)
        assert video.shape == (16, SIZE, SIZE, 3)
        frames = np.stack([picture(sample.clip_id, index) for index in range(sample.frame_count)])
        errors = [np.abs(video - frames[at : at + 16].astype(float)).mean() for at in range(5)]
        assert min(errors) < 2 < sorted(errors)[1] + 2       # of JPEG; and it is one window of the clip
    coded = studio(store, settings, tmp_path / "b")
    difference = np.abs(coded.get("real", 0).astype(float) - exact.get("real", 0)).mean()
    assert 0.1 < difference < 6


def test_a_generated_video_is_a_function_of_seed_and_number(store, settings, tmp_path: Path) -> None:
    one, other = (studio(store, settings, tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(one.get("videos", 2), other.get("videos", 2))
    assert (one.get("videos", 1) != one.get("videos", 2)).any()
    moved = studio(store, changed(settings, seed=1), tmp_path / "c")
    assert (moved.get("videos", 2) != one.get("videos", 2)).any()
    assert one.get("videos", 0).shape == (16, SIZE, SIZE, 3)


def test_samples_are_made_when_they_are_wanted(store, settings, tmp_path: Path) -> None:
    made = Here(studio(store, settings, tmp_path / "a"), "videos", 3)
    first = made.map(lambda video: video.mean())
    assert not list((tmp_path / "a").iterdir())
    next(first)
    assert len(list((tmp_path / "a").iterdir())) == 1
    first.close()


def test_of_many_held_out_clips_a_fixed_choice_is_taken() -> None:
    from dataclasses import replace

    from stages.dataset import Sample

    one = Sample("c", "p", "s", "l", "test", 20, 25.0, SIZE, "tar", "index")
    clips_of = [replace(one, clip_id=f"c{number:03d}") for number in range(40)]
    dataset = Dataset(FolderStorage(Path("none")), "v", SIZE, 25.0, clips_of, [])
    chosen = [sample.clip_id for sample in held_out(dataset, 16, 10)[0]]
    assert len(chosen) == 10
    assert chosen != [sample.clip_id for sample in clips_of[:10]]
    more = replace_samples(dataset, [*clips_of, replace(one, clip_id="c999")])
    assert len({*chosen} & {s.clip_id for s in held_out(more, 16, 10)[0]}) >= 9


def replace_samples(dataset: Dataset, samples: list[Any]) -> Dataset:
    return Dataset(dataset.store, "w", dataset.size, dataset.fps, samples, [])


def test_a_network_that_no_metric_has_is_refused() -> None:
    with pytest.raises(ValidationError, match="'i3dd' is no network of a metric; known: i3d, inception"):
        EvaluateSettings(networks={"i3dd": "file"})


def test_files_of_no_use_are_refused_before_anything_is_made(
    store, settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = changed(settings, networks={"i3d": "/none/net.pt"})
    with pytest.raises(ValueError, match=r"evaluate\.networks\.i3d: no file /none/net\.pt"):
        figures(store, away, SUBJECT)
    with pytest.raises(ValueError, match=r"statistics /none/s\.pkl: no such file"):
        figures(store, changed(settings, statistics="/none/s.pkl"), SUBJECT)
    state = tmp_path / "state.pth"
    torch.save({}, state)
    with pytest.raises(ValueError, match=r"state\.pth: is neither TorchScript nor ONNX"):
        figures(store, changed(settings, networks={"i3d": str(state)}), SUBJECT)
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    script(tmp_path, seeded(VideoNetwork), "i3d_torchscript.pt")
    with pytest.raises(ValueError, match=r"i3d_torchscript\.pt: its sha256 is"):
        figures(store, changed(settings, networks={}), SUBJECT)
    assert not list(store.list("evaluate"))
