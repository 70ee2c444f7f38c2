"""The sampling law: pure, fair to people, blind to those of other splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from infra.storage import FolderStorage
from model import times
from model.config import Variant, tiny, with_changes
from pipelines.sampling import Draw, Sampler, check_dataset
from stages.dataset import Dataset, Sample


def sample(clip_id: str, person: str, frames: int = 60, split: str = "train") -> Sample:
    blank: dict[str, Any] = dict.fromkeys([f.name for f in fields(Sample)], "")
    named = {"clip_id": clip_id, "identity": person, "frame_count": frames, "split": split}
    return Sample(**{**blank, "fps": 25.0, "size": 64, **named})


CLIPS = [sample(f"{name[0]}{i}", name[0]) for name in ("aaaaa", "b", "cc") for i in range(len(name))]


def dataset(samples: list[Sample]) -> Dataset:
    return Dataset(FolderStorage("."), "v", 64, 25.0, samples, [])


def variant(frames: int = 2, span: int = 16) -> Variant:
    changes = {"frames_span": span, "discriminator.frames": frames}
    return replace(tiny(), model=with_changes(tiny().model, changes))


def told(draw: Draw) -> tuple[Any, ...]:
    return draw.sample.clip_id, draw.frames.tolist(), draw.times.tolist(), draw.flip


def test_a_draw_depends_on_nothing_but_its_place() -> None:
    places = [(step, video, attempt) for step in range(5) for video in range(4) for attempt in range(2)]
    first, second = Sampler(CLIPS, tiny(), 7), Sampler(CLIPS[::-1], tiny(), 7)
    forwards = {place: told(first.real(*place)) for place in places}
    backwards = {place: told(second.real(*place)) for place in reversed(places)}
    assert forwards == backwards
    assert len({str(draw) for draw in forwards.values()}) == len(places)


def test_people_take_turns_and_every_clip_is_seen() -> None:
    sampler = Sampler(CLIPS, tiny(), 0)
    drawn = [sampler.real(step, video).sample for step in range(90) for video in range(4)]
    assert set(Counter(clip.identity for clip in drawn).values()) == {90 * 4 // 3}
    assert {clip.clip_id for clip in drawn} == {clip.clip_id for clip in CLIPS}
    for at in range(0, len(drawn), 3):
        assert {clip.identity for clip in drawn[at : at + 3]} == set("abc")


def test_pairs_of_frames_follow_the_law_of_the_paper() -> None:
    sampler, span = Sampler(CLIPS, tiny(), 0), 16
    drawn = [sampler.real(step, video) for step in range(1000) for video in range(4)]
    pairs = np.zeros((span, span))
    for draw in drawn:
        i, j = np.rint(draw.times * (span - 1)).astype(int)
        pairs[i, j] += 1
    law = times.index_pair_probability(span)
    spread = np.sqrt(law / len(drawn))
    assert (np.abs(pairs / len(drawn) - law) <= 5 * spread + 1e-9).all()
    assert 0.45 < np.mean([draw.flip for draw in drawn]) < 0.55


def test_windows_reach_from_the_first_frame_to_the_last() -> None:
    sampler = Sampler(CLIPS, variant(span=48), 0)
    seen = [sampler.real(step, video).frames for step in range(300) for video in range(4)]
    assert np.min(seen) == 0
    assert np.max(seen) == 59


@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize(("span", "count"), [(16, 60), (48, 60), (60, 60), (200, 230)])
def test_n_frames_of_a_window_with_their_times(frames: int, span: int, count: int) -> None:
    clips = [replace(clip, frame_count=count) for clip in CLIPS]
    sampler = Sampler(clips, variant(frames, span), 0)
    for step in range(50):
        for video in range(4):
            draw = sampler.real(step, video)
            assert len(draw.frames) == len(draw.times) == frames
            assert 0 <= draw.frames[0] <= draw.frames[-1] < count
            assert list(draw.frames) == sorted(draw.frames)
            assert draw.frames[-1] - draw.frames[0] < span
            gaps = np.diff(draw.frames) / (span - 1)
            np.testing.assert_allclose(np.diff(draw.times), gaps, atol=1e-6)


def test_whoever_replaces_a_damaged_clip_is_drawn_from_all_people() -> None:
    sampler = Sampler(CLIPS, tiny(), 0)
    seen = Counter(sampler.real(step, 0, 1).sample.identity for step in range(300))
    assert min(seen[person] for person in "abc") > 70


def test_nobody_of_another_split_is_trained_on_with_any_clip() -> None:
    held_out = [sample("t0", "t", split="test"), sample("t1", "t"), sample("v0", "v", split="val")]
    clips = check_dataset(dataset([*CLIPS, *held_out]), tiny())
    assert {clip.identity for clip in clips} == set("abc")
    sampler = Sampler(clips, tiny(), 0)
    assert {sampler.real(step, 0).sample.identity for step in range(60)} == set("abc")


def test_what_is_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    more = [sample("s0", "s", frames=9), sample("t0", "t", split="test"), sample("t1", "t")]
    with caplog.at_level("INFO"):
        check_dataset(dataset([*CLIPS, *more]), tiny())
    assert caplog.messages == [
        "training on 8 of 11 clips; left out: 1 of people of another split, 1 of split test, "
        "1 shorter than 16 frames"
    ]


@pytest.mark.parametrize(
    ("samples", "changed", "message"),
    [
        ([], tiny(), "the dataset v holds no clip"),
        (CLIPS, variant(span=96), "no training clip has the 96 frames .* of 8 has 60 .*model.frames_span"),
        (CLIPS[:3], tiny(), "train.batch: 4 videos, .* 3 clips to train on; set train.batch=3 or less"),
    ],
)  # fmt: skip
def test_a_dataset_that_cannot_fill_a_batch_is_one_line(
    samples: list[Sample], changed: Variant, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_dataset(dataset(samples), changed)
    assert "\n" not in str(error.value)
