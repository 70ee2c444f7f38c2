import hashlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_model import small_model  # noqa: E402

from pipelines.api import Model  # noqa: E402
from pipelines.latents import TENSORS, Latent  # noqa: E402
from pipelines.trajectories import trajectory  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def talk(model: Model) -> Latent:
    """Four frames, each with a motion of its own."""
    sampled = model.sample(1, times=model.times(4, (0, 1)), cameras=trajectory("orbit", 4))
    motion = np.random.default_rng(0).normal(size=(4, sampled.z_m.shape[1])).astype(np.float32)
    return replace(sampled, z_m=motion, target=model.render(sampled), about={"curve": [{"step": 0}]})


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the last bit, which depends on how many frames are rendered at once."""
    return int(np.abs(a.astype(int) - b).max()) <= 1


def test_a_latent_comes_back_as_it_was_written(talk: Latent, tmp_path: Path) -> None:
    path = talk.save(tmp_path / "her.talk")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["her.talk.json", "her.talk.safetensors"]
    for name in (path, path.with_suffix(".json"), tmp_path / "her.talk"):
        read = Latent.load(name)
        for field in ("ws", "z_m", "times", "cameras", "target"):
            np.testing.assert_array_equal(getattr(read, field), getattr(talk, field))
        assert (read.model, read.about) == (talk.model, talk.about)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no her.safetensors"),
        (lambda p: p.with_suffix(".json").unlink(), "no her.json"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "its json belongs to other tensors"),
        (lambda p: p.with_suffix(".json").write_text("{"), "is damaged or none"),
        (lambda p: p.with_suffix(".json").write_text('{"schema": 9}'), "not of schema 1"),
    ],
)
def test_a_damaged_latent_is_one_line(damage, message: str, talk: Latent, tmp_path: Path) -> None:
    path = talk.save(tmp_path / "her")
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        Latent.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": np.zeros((4, 25), np.float32)}, "camera 0"),
        ({"z_m": np.full((4, 3), np.nan, np.float32)}, "not finite"),
        ({"times": np.array([0, 1, 2, 3], np.float32)}, "its times"),
        ({"ws": np.zeros((3, 2, 2), np.float32)}, "its ws has shape"),
    ],
)
def test_numbers_that_are_no_latent_are_refused(
    change: dict, message: str, talk: Latent, tmp_path: Path
) -> None:
    path = replace(talk, **change).save(tmp_path / "bad")
    with pytest.raises(ValueError, match=message):
        Latent.load(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "I32"])
def test_other_kinds_of_numbers_are_refused(dtype: str, talk: Latent, tmp_path: Path) -> None:
    path = talk.save(tmp_path / "bad")
    header = {name: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]} for name in TENSORS}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    card = json.loads(path.with_suffix(".json").read_text())
    card["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"not float32.*invert again"):
        Latent.load(path)


def test_a_pipe_in_place_of_a_latent_is_refused_and_not_waited_for(talk: Latent, tmp_path: Path) -> None:
    path = talk.save(tmp_path / "bad")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is no file"):
        Latent.load(path)


def test_a_seed_rendered_as_a_latent_is_what_generate_makes(model: Model) -> None:
    times, cameras = model.times(3), trajectory("orbit", 3)
    made = next(model.generate([5], times=times, cameras=cameras))
    np.testing.assert_array_equal(model.render(made.latent), made.pictures["image"])


def test_motion_scaled_by_zero_stands_still_and_by_one_is_itself(model: Model, talk: Latent) -> None:
    still = replace(talk, cameras=trajectory("still", 4))
    np.testing.assert_array_equal(model.render(still.scaled(1)), model.render(still))
    frozen = model.render(still.scaled(0))
    assert (frozen == frozen[:1]).all()
    moving = model.render(still)
    assert (moving != moving[:1]).any()
    np.testing.assert_array_equal(moving[0], frozen[0])  # Eq. 1: at t = 0 there is no motion


def test_who_is_driven_keeps_face_and_view_and_takes_the_motion(model: Model, talk: Latent) -> None:
    person = model.sample(2, times=np.zeros(1, np.float32), cameras=trajectory("still", 1, yaw_deg=10))
    driven = person.driven_by(talk)
    np.testing.assert_array_equal(driven.ws, person.ws)
    np.testing.assert_array_equal(driven.z_m, talk.z_m)
    assert (driven.cameras == person.cameras).all()
    made = model.render(driven)
    assert near(made[0], model.render(person)[0])
    assert not near(made[3], made[0])


def test_an_animated_picture_begins_as_the_picture(model: Model) -> None:
    person = model.sample(2, times=np.zeros(1, np.float32))
    moving = model.animate(person, 7, times=model.times(3))
    made = model.render(moving, yaws=(-20, 0))
    assert made.shape == (3, 64, 128, 3)
    assert near(made[0, :, 64:], model.render(person)[0])
    assert not near(made[2], made[0])


def test_a_latent_of_another_model_is_refused(model: Model, talk: Latent) -> None:
    other = small_model(1)
    assert other.sha256 != model.sha256 == small_model(0).sha256
    for use in (lambda: other.render(talk), lambda: other.mesh(talk)):
        with pytest.raises(ValueError, match=r"the latent is of another model .* give that model"):
            use()
    with pytest.raises(ValueError, match="the driving latent is of another model"):
        talk.driven_by(other.sample(0, times=talk.times))


def test_the_json_tells_model_frames_and_hash(talk: Latent, tmp_path: Path) -> None:
    card = json.loads(talk.save(tmp_path / "a").with_suffix(".json").read_text())
    assert (card["model"], card["frames"], len(card["sha256"])) == (talk.model, 4, 64)
