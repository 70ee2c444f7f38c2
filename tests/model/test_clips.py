import numpy as np
import pytest
import torch

from model.camera import canonical_camera, orbit
from model.clips import codes, latents, render_clip, render_views, to_uint8, together, window_times
from model.config import tiny, with_changes
from model.generator import Generator
from model.times import index_times


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny().model).eval()


def frames(
    generator: Generator, seed: int, cameras: np.ndarray, times: np.ndarray, **options: object
) -> np.ndarray:
    parts = render_clip(generator, seed, cameras, times, rendering_resolution=8, **options)
    return to_uint8(torch.cat([part.image[0] for part in parts]))


CAMERAS = np.stack([orbit(yaw).encode() for yaw in (0, 10, 20, 30)])
TIMES = np.array([0, 0.2, 0.6, 1], np.float32)


def test_a_seed_names_the_same_pixels_every_time(generator: Generator) -> None:
    first, again = (frames(generator, 3, CAMERAS, TIMES) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != frames(generator, 4, CAMERAS, TIMES)).any()
    assert first.shape == (4, 64, 64, 3)


def test_chunks_share_the_first_frames_camera_in_the_mapping(generator: Generator) -> None:
    whole, halves = (
        frames(generator, 3, CAMERAS, TIMES, chunk=4),
        frames(generator, 3, CAMERAS, TIMES, chunk=2),
    )
    assert np.abs(whole.astype(int) - halves).max() <= 1
    front = canonical_camera().encode()
    assert (frames(generator, 3, CAMERAS, TIMES, mapping_camera=front) != whole).any()


def test_latents_of_z_and_motion_differ_between_seeds() -> None:
    config = tiny().model
    (z, z_m), (other_z, other_z_m) = latents(config, 0), latents(config, 1)
    assert z.shape == (1, config.z_dim)
    assert z_m.shape == (1, config.z_m_dim)
    assert not torch.equal(z, other_z)
    assert not torch.equal(z_m, other_z_m)


def test_times_count_as_in_the_training_window() -> None:
    config = tiny().model
    np.testing.assert_allclose(window_times(config, 3), np.arange(3) / (config.frames_span - 1))
    assert window_times(config, config.frames_span)[-1] == 1


@pytest.mark.parametrize("span", [16, 48, 200])
def test_a_window_of_any_length_goes_from_0_to_1_frame_by_frame(span: int) -> None:
    config = with_changes(tiny().model, {"frames_span": span})
    times = window_times(config, span)
    assert [times[0], times[-1], len(times)] == [0, 1, span]
    np.testing.assert_allclose(np.diff(times), 1 / (span - 1), atol=1e-6)
    np.testing.assert_array_equal(times, index_times(np.arange(span), span))  # the real frames' law
    np.testing.assert_array_equal(window_times(config, 5), times[:5])  # fewer are its first ones


@pytest.mark.parametrize("count", [0, 17])
def test_frames_outside_the_window_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"frames {count}.*16"):
        window_times(tiny().model, count)


def test_bad_seeds_and_unequal_lengths_are_refused(generator: Generator) -> None:
    with pytest.raises(ValueError, match="seed -1"):
        latents(tiny().model, -1)
    with pytest.raises(ValueError, match="4 cameras for 3 times"):
        frames(generator, 0, CAMERAS, TIMES[:3])


def test_frames_are_clamped_to_bytes() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 5).expand(3, 1, 5)
    np.testing.assert_array_equal(to_uint8(image)[0, :, 0], [0, 0, 128, 255, 255])


def test_a_frame_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((3, 2, 2), float("nan")))


def test_views_share_their_planes_and_are_the_pictures_of_each_view_alone(generator: Generator) -> None:
    made = codes(generator, 3, CAMERAS)
    still = np.stack([np.repeat(CAMERAS[[i]], 2, axis=0) for i in (0, 3)])
    parts = next(render_views(generator, made, still, TIMES[:2], rendering_resolution=8))
    for view, part in zip(still, parts, strict=True):
        alone = next(render_views(generator, made, view[None], TIMES[:2], rendering_resolution=8))[0]
        torch.testing.assert_close(part.image, alone.image, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"cameras \[4, 25\] for 4 times"):
        next(render_views(generator, made, CAMERAS, TIMES))


def test_a_clip_has_the_same_pixels_wherever_it_stands_in_a_batch(generator: Generator) -> None:
    mine, other = codes(generator, 3, CAMERAS), codes(generator, 4, CAMERAS)
    batches = [together(clips, 3) for clips in ([mine], [other, mine], [other, other, mine])]
    seen = [
        next(render_views(generator, batch, CAMERAS[None], TIMES, rendering_resolution=8))[0].image[place]
        for batch, place in zip(batches, (0, 1, 2), strict=True)
    ]
    for picture in seen[1:]:
        np.testing.assert_array_equal(to_uint8(picture), to_uint8(seen[0]))
