from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dlib")

from small_model import small_model  # noqa: E402

from pipelines import invert as inverting  # noqa: E402
from pipelines.api import Model  # noqa: E402
from pipelines.inversion import Settings, State  # noqa: E402
from pipelines.inversion_loss import Loss  # noqa: E402
from pipelines.invert import invert_frames  # noqa: E402
from pipelines.invert_face import Found  # noqa: E402
from pipelines.packed import PORTRAITS  # noqa: E402
from pipelines.trajectories import trajectory  # noqa: E402
from stages.sources.portraits import GRACE_HOPPER, _path  # noqa: E402

FAST = Settings(steps=6, batch=2, check_every=2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def shipped() -> Model:
    if not PORTRAITS.is_file():
        pytest.skip("no trained model ships with this checkout")
    return Model.load(None)


def clip(model: Model, frames: int, seed: int = 3) -> Found:
    times = model.times(frames, (0, 1)) if frames > 1 else np.zeros(1, np.float32)
    cameras = trajectory("orbit", frames, yaw_deg=10)
    made = next(model.generate([seed], times=times, cameras=cameras, psi=0.7))
    return Found(made.pictures["image"], cameras, ())


def test_a_sample_of_the_model_is_recovered(shipped: Model) -> None:
    found = clip(shipped, 1, seed=0)
    latent = invert_frames(shipped, found, Settings(steps=60), {})
    assert latent.about["psnr"] >= 30 > latent.about["mean_latent_psnr"]
    _, figures = shipped.reconstruct(latent)
    assert figures["psnr"] == pytest.approx(latent.about["psnr"], abs=0.05)


def test_a_portrait_ends_well_above_the_mean_face(shipped: Model) -> None:
    latent = shipped.invert(_path(GRACE_HOPPER), Settings(steps=60))
    assert latent.about["psnr"] >= latent.about["mean_latent_psnr"] + 6
    assert latent.about["kind"] == "image"
    assert latent.about["source"] == Path(GRACE_HOPPER.path).name


def test_the_curve_is_of_the_best_so_far_which_is_what_is_kept(model: Model) -> None:
    latent = invert_frames(model, clip(model, 3), FAST, {})
    curve = latent.about["curve"]
    assert [point["step"] for point in curve] == [0, 2, 4, 6]
    assert [point["best"] for point in curve] == list(np.maximum.accumulate([p["psnr"] for p in curve]))
    assert latent.about["loss"] == "gradients"
    made, figures = model.reconstruct(latent)
    assert made.shape == (3, 64, 64, 3)
    assert figures["psnr"] == pytest.approx(curve[-1]["best"], abs=0.05)
    assert set(figures) == {"l1", "psnr", "ssim", "lpips", "not_computed"}
    assert "vgg16.pt" in figures["not_computed"]["lpips"]


def test_a_video_gets_one_face_and_a_motion_per_frame_and_a_picture_no_motion(model: Model) -> None:
    latent = invert_frames(model, clip(model, 3), Settings(steps=3, pixel=10), {})
    assert latent.ws.shape == (model.config.num_ws, model.config.w_dim)
    assert latent.z_m.shape == (3, model.config.z_m_dim)
    assert (latent.z_m[1] != latent.z_m[2]).any()
    np.testing.assert_allclose(latent.times, [0, 0.5, 1])
    picture = invert_frames(model, clip(model, 1), Settings(steps=1), {})
    assert picture.times.tolist() == [0.0]
    assert not picture.z_m.any()


class StopError(Exception):
    pass


def test_a_stopped_inversion_goes_on_to_the_same_latent(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inverting, "SAVE_S", 0.0)
    found, state = clip(model, 3), tmp_path / "it.state.safetensors"
    whole = invert_frames(model, found, FAST, {})

    def stop(done: int, left: int) -> None:
        if left == 3:
            raise StopError

    with pytest.raises(StopError):
        invert_frames(model, found, FAST, {}, state=state, tick=stop)
    lefts: list[int] = []
    resumed = invert_frames(
        model, found, FAST, {}, state=state, tick=lambda done, left: lefts.append(left)
    )
    assert lefts == [3, 2, 1, 0]
    for name in ("ws", "z_m"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(resumed, name))
    assert resumed.about["curve"] == whole.about["curve"]
    with pytest.raises(ValueError, match="with other settings; give them again, or --restart"):
        invert_frames(model, found, Settings(steps=7), {}, state=state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="a damaged state; delete it"):
        State.load(state, "", torch.device("cpu"))


def test_every_frame_is_seen_in_a_round(model: Model) -> None:
    from pipelines.inversion import Inversion

    found = clip(model, 5)
    work = Inversion(
        model.opened.generator, found.pictures, found.cameras, model.times(5, (0, 1)), Loss(), FAST
    )
    rounds = [torch.cat([work._drawn(step) for step in range(3 * n, 3 * n + 3)]) for n in range(2)]
    assert [sorted(set(r.tolist())) for r in rounds] == [[0, 1, 2, 3, 4]] * 2
    assert rounds[0].tolist() != rounds[1].tolist()


class Halves(torch.nn.Module):
    """A network of somebody's: the picture at half its size, as features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1) / 255


def test_a_network_in_a_file_is_used_and_named_for_what_it_is(tmp_path: Path) -> None:
    torch.jit.script(Halves()).save(str(tmp_path / "halves.pt"))
    loss = Loss(tmp_path / "halves.pt")
    assert loss.name == "perceptual/halves"
    made = torch.zeros(2, 3, 16, 16, requires_grad=True)
    real = torch.full((2, 3, 16, 16), 0.5)
    value = loss(made, real, 0.0, 1.0)
    assert float(value.detach()) == pytest.approx(3 * 64 * 0.25**2, rel=1e-4)
    value.backward()
    assert float(made.grad.abs().min()) > 0


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: is no TorchScript"):
        Loss(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"no file .*absent.pt"):
        Loss(tmp_path / "absent.pt")


def test_edges_in_other_places_cost_more_than_a_shade(model: Model) -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[..., 10:20] = 1.0
    shaded, moved = real + 0.05, real.roll(2, dims=-1)
    loss = Loss()
    assert float(loss(moved, real, 0.0, 1.0)) > 5 * float(loss(shaded, real, 0.0, 1.0))
    assert float(loss(real, real, 1.0, 1.0)) == 0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": float("nan")}, {"pixel": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
