"""FVD, FID, KID and id by random networks in files: what is computed, how it is called, what is refused."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from metric_files import PictureNetwork, VideoNetwork, onnx_mean, script, seeded, videos  # noqa: E402

from infra.storage import FolderStorage  # noqa: E402
from infra.weights import WeightsError  # noqa: E402
from model.camera import canonical_camera  # noqa: E402
from stages.metrics import Evaluation, MultiView, load  # noqa: E402
from stages.metrics.fid import inception_features  # noqa: E402
from stages.metrics.frechet import frechet_distance, statistics  # noqa: E402
from stages.metrics.fvd import i3d_preprocess, video_features  # noqa: E402
from stages.metrics.identity import whole_frame_similarity  # noqa: E402
from stages.metrics.kid import unbiased_mmd  # noqa: E402
from stages.metrics.networks import find_network  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
FVD, FID, KID = (load(f"stages.metrics.{name}") for name in ("fvd", "fid", "kid"))
REAL, FAKE = videos(14), videos(12, seed=1)


class Counted(list):
    """Videos that count how often they are gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


@pytest.fixture
def i3d(tmp_path: Path) -> Evaluation:
    """Real and generated videos, and a random video network."""
    path = script(tmp_path, seeded(VideoNetwork), "random.pt")
    return Evaluation(videos=FAKE, real=REAL, size=32, networks={"i3d": str(path)})


@pytest.fixture
def inception(tmp_path: Path) -> Evaluation:
    path = script(tmp_path, seeded(PictureNetwork), "pictures.pt")
    return Evaluation(videos=FAKE, real=REAL, size=32, networks={"inception": str(path)})


def features(evaluation: Evaluation, some: list[np.ndarray]) -> np.ndarray:
    network = find_network("i3d", evaluation.networks, None)
    return np.concatenate([video_features(video, network, 16, 0) for video in some])


def test_fvd_is_the_distance_of_the_networks_features(i3d: Evaluation) -> None:
    (name, value), *others = FVD(i3d).items()
    assert not others
    expected = frechet_distance(*statistics(features(i3d, REAL)), *statistics(features(i3d, FAKE)))
    assert value.value == pytest.approx(expected, rel=1e-9)
    assert (name, value.samples, value.direction) == ("fvd/random", 12, "lower")
    low, high = value.interval
    assert low < value.value < high
    assert "not the listed network" in value.note
    assert len(value.network) == 64


def test_the_network_sees_frames_as_i3d_does(i3d: Evaluation) -> None:
    network = seeded(VideoNetwork)
    with torch.no_grad():
        expected = network(torch.from_numpy(i3d_preprocess(REAL[0][None]))).numpy()
    np.testing.assert_allclose(features(i3d, REAL[:1]), expected, rtol=1e-4, atol=1e-5)


def test_48_frames_have_a_name_of_their_own(i3d: Evaluation) -> None:
    long = replace(i3d, frames=48, videos=videos(4, frames=48), real=videos(5, 2, 48))
    assert list(FVD(long)) == ["fvd48/random"]


def test_the_official_mode_goes_by_way_of_512_px(i3d: Evaluation) -> None:
    smooth = [np.repeat(video[:, ::4, ::4], 6, axis=1).repeat(6, axis=2) for video in FAKE[:4]]
    paper = FVD(replace(i3d, videos=smooth, size=0))["fvd/random"]
    official = FVD(replace(i3d, videos=smooth, size=0, mode="official"))["fvd/random"]
    assert official.mode == "official"
    assert official.value != paper.value
    assert official.value == pytest.approx(paper.value, rel=0.5)


def test_official_frames_are_those_of_512_px(i3d: Evaluation) -> None:
    network = find_network("i3d", i3d.networks, None)
    small = np.random.default_rng(2).integers(0, 256, (16, 96, 96, 3)).astype(np.uint8)
    large = np.stack([cv2.resize(frame, (512, 512)) for frame in small])
    found = video_features(small, network, 16, 0, "official")
    np.testing.assert_array_equal(found, video_features(large, network, 16, 0, "paper"))
    np.testing.assert_array_equal(found, video_features(large, network, 16, 0, "official"))
    assert (found != video_features(small, network, 16, 0, "paper")).any()


class LogitsOfMoments(torch.nn.Module):
    """[1, 3, T, H, W] -> [1, 3, T]: of every frame, as I3D before its mean over time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(3, 4))


def test_logits_of_every_moment_are_averaged_over_time(tmp_path: Path) -> None:
    path = script(tmp_path, LogitsOfMoments(), "moments.pt")
    network = find_network("i3d", {"i3d": str(path)}, None)
    found = video_features(FAKE[0], network, 16, 32)
    expected = i3d_preprocess(FAKE[0][None]).mean(axis=(2, 3, 4), dtype=np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_network_of_one_size_gets_averaged_frames_of_that_size(tmp_path: Path) -> None:
    path = onnx_mean(tmp_path / "mean.onnx", ["n", 3, 16, 16], [2, 3])
    network = find_network("inception", {"inception": str(path)}, None)
    video = (np.random.default_rng(3).integers(0, 64, (16, 32, 32, 3)) * 4).astype(np.uint8)
    expected = video.mean(axis=(1, 2))                       # which averaging keeps, up to whole levels
    np.testing.assert_allclose(inception_features(video, network, 16, 32), expected, atol=0.6)


def test_a_video_has_the_same_features_alone_and_among_others(i3d: Evaluation) -> None:
    together = features(i3d, FAKE)
    np.testing.assert_array_equal(together[[5]], features(i3d, [FAKE[5]]))
    np.testing.assert_array_equal(together[::-1], features(i3d, FAKE[::-1]))


def test_real_statistics_are_found_once_and_kept_for_the_same_data_only(i3d, tmp_path: Path) -> None:
    store = FolderStorage(tmp_path / "store")
    real = Counted(REAL[:4])
    kept = replace(i3d, videos=FAKE[:4], real=real, cache=store, real_key="data-1")
    first = FVD(kept)["fvd/random"]
    assert (first, real.passes) == (FVD(kept)["fvd/random"], 1)
    assert len(list(store.list("statistics"))) == 1
    FVD(replace(kept, real_key="data-2"))
    other = script(tmp_path, seeded(VideoNetwork, 1), "other.pt")
    FVD(replace(kept, networks={"i3d": str(other)}))
    assert (real.passes, len(list(store.list("statistics")))) == (3, 3)
    FVD(replace(kept, real_key=""))
    assert len(list(store.list("statistics"))) == 3


def test_real_statistics_of_other_settings_or_other_code_are_not_taken(
    i3d, tmp_path: Path, monkeypatch
) -> None:
    store = FolderStorage(tmp_path / "store")
    kept = replace(i3d, videos=FAKE[:4], real=REAL[:4], cache=store, real_key="k")
    long = replace(kept, frames=48, videos=videos(4, frames=48), real=videos(5, 2, 48))
    large = replace(kept, size=64, videos=videos(4, side=64), real=videos(5, 2, side=64))
    for number, other in enumerate((kept, replace(kept, mode="official"), long, large, kept), 1):
        ((_, value),) = FVD(other).items()
        assert value == next(iter(FVD(replace(other, cache=None)).values()))
        assert len(list(store.list("statistics"))) == min(number, 4)
    for name in ("fvd", "networks", "reference", "statistics"):
        changed = tmp_path / f"{name}.py"
        changed.write_text("# another way to prepare frames")
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[f"stages.metrics.{name}"], "__file__", str(changed))
            FVD(kept)
    assert len(list(store.list("statistics"))) == 8


@pytest.mark.parametrize(("other", "message"), [({"frames": 48}, "of frames 48, .* of 16"), (
    {"mode": "official"}, "of mode official, .* of paper")])  # fmt: skip
def test_statistics_of_another_length_or_definition_are_refused_before_a_video_is_made(
    i3d, tmp_path: Path, other, message: str
) -> None:
    store = FolderStorage(tmp_path / "store")
    frames = other.get("frames", 16)
    some = {"videos": videos(4, frames=frames), "real": videos(4, 1, frames)}
    FVD(replace(i3d, cache=store, real_key="k", **some, **other))
    (key,) = store.list("statistics")
    fake = Counted(FAKE)
    with pytest.raises(ValueError, match=message):
        FVD(replace(i3d, videos=fake, statistics=store.path(key)))
    assert fake.passes == 0


def test_a_published_file_takes_the_place_of_real_videos_under_a_name_that_says_so(
    tmp_path: Path, shared_data: Path
) -> None:
    (path,) = (shared_data / "weights").glob("*i3d-stats.pkl")
    network = script(tmp_path, seeded(functools.partial(VideoNetwork, 400)), "random.pt")
    given = Evaluation(videos=FAKE, size=32, networks={"i3d": str(network)}, statistics=path)
    ((name, value),) = FVD(given).items()
    assert name == f"fvd/random-vs-{path.stem}"
    assert "do not say which network" in value.note
    assert "5000 real videos" in value.note
    assert "fewer videos than the 400 features" in value.note
    long = replace(given, frames=48, videos=videos(3, frames=48))
    with pytest.raises(ValueError, match="of frames 16, this evaluation of 48"):
        FVD(long)                                            # the authors' clips have 16


def test_statistics_of_another_network_are_refused(i3d, tmp_path: Path, shared_data: Path) -> None:
    (path,) = (shared_data / "weights").glob("*i3d-stats.pkl")
    with pytest.raises(ValueError, match="another network: 400 features, this one gives 6"):
        FVD(replace(i3d, statistics=path))
    store = FolderStorage(tmp_path / "store")
    FVD(replace(i3d, cache=store, real_key="k"))
    (key,) = store.list("statistics")
    other = script(tmp_path, seeded(VideoNetwork, 1), "other.pt")
    fake = Counted(FAKE)
    with pytest.raises(ValueError, match="statistics of another network: of sha256"):
        FVD(replace(i3d, videos=fake, networks={"i3d": str(other)}, statistics=store.path(key)))
    assert fake.passes == 0                                  # found before hours of work


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (videos(1, frames=15)[0], r"a video is \[15, 32, 32, 3\], not of 16 frames"),
        (videos(1, side=64)[0], "64x64 px, the others of 32x32"),
        (np.full((16, 32, 32, 3), np.nan, np.float32), "NaN in its frames"),
        (np.zeros((16, 32, 32, 3), np.float32), "float32 frames; give uint8"),
    ],
)
def test_a_video_of_another_kind_is_refused_and_nothing_is_kept(
    i3d, inception, tmp_path: Path, bad: np.ndarray, message: str
) -> None:
    store = FolderStorage(tmp_path / "store")
    for compute, evaluation in ((FVD, i3d), (FID, inception)):
        with pytest.raises(ValueError, match=f"^real video 14: .*{message}"):
            compute(replace(evaluation, real=[*REAL, bad], cache=store, real_key="k"))
        with pytest.raises(ValueError, match=f"^generated video 12: .*{message}"):
            compute(replace(evaluation, videos=[*FAKE, bad]))
    assert not list(store.list("statistics"))


class Raising(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("it is broken")


class Complex(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x[:, 0, 0, 0], x[:, 1, 0, 0])


@pytest.mark.parametrize(("network", "message"), [(Raising, "does not take"), (Complex, "complex numbers")])
def test_a_network_that_raises_or_answers_oddly_is_named_in_one_line(i3d, network, message, tmp_path) -> None:
    path = script(tmp_path, network(), "odd.pt")
    with pytest.raises(WeightsError, match=rf"weights file .*odd\.pt: .*{message}") as told:
        FVD(replace(i3d, networks={"i3d": str(path)}))
    assert "\n" not in str(told.value)


def test_too_few_videos_for_a_covariance_are_refused(i3d: Evaluation) -> None:
    with pytest.raises(ValueError, match=r"real videos: 1 sample\(s\): too few"):
        FVD(replace(i3d, real=REAL[:1]))
    with pytest.raises(ValueError, match=r"generated videos: 1 sample\(s\): too few"):
        FVD(replace(i3d, videos=FAKE[:1]))


@pytest.mark.parametrize(("compute", "name", "entry"), [(FVD, "fvd", "i3d"), (FID, "fid", "inception")])
def test_what_is_missing_is_the_reason_for_no_figure(compute, name, entry, tmp_path: Path) -> None:
    assert "missing" in compute(Evaluation(videos=FAKE, real=REAL))[name].reason
    state = tmp_path / "state.pth"
    torch.save({}, state)
    given = Evaluation(videos=FAKE, real=REAL, networks={entry: str(state)})
    assert "holds no network" in compute(given)[name].reason
    path = script(tmp_path, seeded(VideoNetwork))
    nobody = Evaluation(videos=FAKE, networks={entry: str(path)}, real_missing="nobody is held out")
    assert compute(nobody)[name].reason == "nobody is held out"


def test_fid_and_kid_share_a_pass_and_keep_one_row_of_each_video(inception, tmp_path: Path) -> None:
    real, fake = Counted(REAL), Counted(FAKE)
    store = FolderStorage(tmp_path / "store")
    shared = replace(inception, videos=fake, real=real, cache=store, real_key="k")
    (fid,), (kid,) = FID(shared).values(), KID(shared).values()
    assert (real.passes, fake.passes) == (1, 1)
    network = seeded(PictureNetwork)

    def of(some: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(some).transpose(0, 1, 4, 2, 3).astype(np.float32))
        with torch.no_grad():
            return np.stack([network(video, return_features=True).numpy() for video in x])

    a, b = of(REAL), of(FAKE)
    expected = frechet_distance(*statistics(a.reshape(-1, 5)), *statistics(b.reshape(-1, 5)))
    assert fid.value == pytest.approx(expected, rel=1e-6)
    assert (fid.samples, kid.samples) == (12, 12)
    rows = [of_all[np.arange(len(of_all)), np.arange(len(of_all)) % 16] for of_all in (a, b)]
    assert kid.value == pytest.approx(plain_mmd(rows[1], rows[0]), rel=1e-3)
    again = replace(shared, memory={})
    assert (FID(again)["fid/pictures"].value, KID(again)["kid/pictures"].value) == (fid.value, kid.value)
    assert real.passes == 1


def test_a_copy_of_an_evaluation_with_other_videos_has_other_figures(inception: Evaluation) -> None:
    """It shares its memory with the first."""
    first = FID(inception)["fid/pictures"]
    other = replace(inception, videos=videos(12, seed=7))
    assert other.memory is inception.memory
    assert FID(other)["fid/pictures"] == FID(replace(other, memory={}))["fid/pictures"] != first
    fewer = replace(inception, real=REAL[:9])
    assert KID(fewer)["kid/pictures"] == KID(replace(fewer, memory={}))["kid/pictures"]
    assert FID(inception)["fid/pictures"] == first


def plain_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Its definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b.astype(np.float64) / len(a) + 1) ** 3)

    own = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return own[0] + own[1] - 2 * np.mean([k(a, b) for a in x for b in y])


def test_kid_is_unbiased_and_its_interval_covers_the_spread() -> None:
    values, halves = [], []
    real = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    for seed in range(1, 31):
        x = np.random.default_rng(seed).normal(size=(200, 4)).astype(np.float32)
        value, (low, high) = unbiased_mmd(x, real)
        values.append(value)
        halves.append((high - low) / 2)
    assert abs(np.mean(values)) < 3 * np.std(values) / 30**0.5 + 0.01
    assert np.mean(halves) == pytest.approx(2.26 * np.std(values), rel=0.35)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_kid_of_any_block_size_is_its_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.metrics.kid.BLOCK", block)
    random = np.random.default_rng(4)
    x, y = (random.normal(size=(n, 5)).astype(np.float32) for n in (20, 23))
    assert unbiased_mmd(x, y)[0] == pytest.approx(plain_mmd(x, y), rel=1e-9)


def test_id_by_a_network_of_ones_own_has_its_name_and_the_papers_arithmetic(tmp_path: Path) -> None:
    path = onnx_mean(tmp_path / "mean.onnx", [1, 3, 112, 112], [2, 3])
    images = np.zeros((4, 64, 64, 3), np.uint8)
    images[:2], images[2:] = (255, 127, 127), (127, 255, 127)
    blank = np.zeros((4, 4, 4), np.float32)
    view = MultiView(
        images=images, depth=blank, opacity=blank, points=np.zeros((4, 4, 4, 3), np.float32),
        cameras=np.tile(canonical_camera().encode(), (4, 1)), times=np.zeros(4, np.float32),
    )  # fmt: skip
    network = find_network("arcface", {"arcface": str(path)}, None)
    colours = np.array([[255, 127, 127], [127, 255, 127]]) / 127.5 - 1
    cosine = colours[0] @ colours[1] / (colours[0] @ colours[0])
    assert whole_frame_similarity(view, network) == pytest.approx((2 + 4 * cosine) / 6, abs=1e-5)

    pytest.importorskip("dlib")
    values = load("stages.metrics.identity")(Evaluation(views=[view], networks={"arcface": str(path)}))
    assert "id" not in values
    assert values["id/mean"].value == pytest.approx((2 + 4 * cosine) / 6, abs=1e-5)
    assert "no figure of the paper" in values["id/mean"].note
