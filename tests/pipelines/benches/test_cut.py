"""The bench of the cutting: it measures what it says."""

from pathlib import Path

import pytest

from pipelines.benches import cut

pytest.importorskip("av")
pytestmark = pytest.mark.slow


def test_the_three_ways_are_timed_and_give_the_frames_of_the_clips() -> None:
    figures = cut.run(rounds=1, seconds=14.0)["figures"]
    assert figures["clips"] == 3
    assert figures["over_decode_from_zero"] > figures["over_bare_decode"] > 0
    assert figures["over_bare_decode"] > 0.5                 # 0.9 is asked of 60 s on a quiet machine


def test_bare_decoding_decodes_no_frame_twice(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    cut.encode(path, cut.scene(260))
    assert cut.bare(path, [(0.4, 1.2), (2.0, 3.0), (6.0, 7.0)]) == 75 + 50
    assert cut.from_zero(path, [(0.4, 1.2), (6.0, 7.0)]) == 30 + 175
