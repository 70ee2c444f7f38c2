import pytest

torch = pytest.importorskip("torch")

from model import augment, losses  # noqa: E402
from model.losses import Sample  # noqa: E402

BRIGHTER, CONTRAST, COLOUR, LEFT, UP = torch.eye(augment.DRAWS)


def frames(videos=2, count=2, side=16):
    random = torch.Generator().manual_seed(0)
    return torch.rand(videos, count, 3, side, side, generator=random) * 2 - 1


def changed(x, *draws):
    return augment.augmented(x, torch.stack(draws))


def test_draws_stay_within_the_strength_and_follow_their_generator():
    draws = augment.draw(1000, 0.5, torch.Generator().manual_seed(3))
    assert draws.shape == (1000, augment.DRAWS)
    assert 0.49 < float(draws.abs().max()) <= 0.5
    assert torch.equal(draws, augment.draw(1000, 0.5, torch.Generator().manual_seed(3)))


def test_without_strength_nothing_changes():
    x = frames()
    torch.testing.assert_close(augment.augmented(x, torch.zeros(2, augment.DRAWS)), x)


def test_each_draw_changes_one_thing():
    x = frames(videos=3, side=12)
    brighter, flat, grey = changed(x, BRIGHTER, -CONTRAST, -COLOUR)
    torch.testing.assert_close(brighter, x[0] + augment.BRIGHTNESS)
    mean = x[1].mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean + (1 - augment.CONTRAST) * (x[1] - mean))
    torch.testing.assert_close(grey, x[2].mean(dim=1, keepdim=True).expand_as(x[2]))


@pytest.mark.parametrize(("side", "pixels"), [(16, 2), (24, 3), (8, 1)])
def test_a_shift_is_by_whole_pixels_and_leaves_grey_behind(side, pixels):
    x = frames(side=side)
    left, down = changed(x, LEFT, -UP)
    torch.testing.assert_close(left[..., :-pixels], x[0, ..., pixels:])
    assert not left[..., -pixels:].any()
    torch.testing.assert_close(down[..., pixels:, :], x[1, ..., :-pixels, :])
    assert not down[..., :pixels, :].any()


def test_all_frames_of_a_video_are_changed_alike_and_a_picture_of_another_size_too():
    x = frames(videos=1, count=1, side=16).expand(1, 3, -1, -1, -1)
    large = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    draws = torch.full((1, augment.DRAWS), 0.5)
    small, enlarged = augment.augmented(x, draws), augment.augmented(large, draws)
    assert torch.equal(small[:, 0], small[:, 2])
    torch.testing.assert_close(enlarged[..., ::2, ::2], small)


def test_the_gradient_goes_to_where_a_pixel_came_from():
    x = frames(videos=1).requires_grad_()
    changed(x, LEFT)[0, 0, 0, 3, 4].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 0, 3, 6]]


def test_both_pictures_of_a_sample_are_changed_and_neither_times_nor_cameras():
    sample = Sample(frames(), frames(side=8), torch.rand(2, 2), torch.rand(2, 2, 25))
    draws = augment.draw(2, 1.0, torch.Generator().manual_seed(1))
    seen = losses.augmented(sample, draws)
    torch.testing.assert_close(seen.image, augment.augmented(sample.image, draws))
    torch.testing.assert_close(seen.image_raw, augment.augmented(sample.image_raw, draws))
    assert seen.times is sample.times
    assert seen.cameras is sample.cameras
    assert losses.augmented(sample, None) is sample
