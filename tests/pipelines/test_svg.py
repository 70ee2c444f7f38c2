import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines import svg


def heights(picture: str) -> list[float]:
    return [float(h) for h in re.findall(r'class="bar".*?height="([\d.]+)"', picture)]


def test_bars_are_proportional_to_counts_and_tell_them() -> None:
    picture = svg.histogram([0.5, 1.5, 1.5], low=0, high=2, bins=2, unit="s", what="clips")
    assert heights(picture)[1] == pytest.approx(2 * heights(picture)[0], rel=0.01)
    assert "1 to 2 s: 2 clips" in picture
    ElementTree.fromstring(picture)


def test_values_beyond_the_scale_are_counted_in_the_outer_bars() -> None:
    picture = svg.histogram([-100, 100, 0.5], low=0, high=1, bins=2, what="frames")
    assert "0 to 0.5 : 1 frames" in picture
    assert "0.5 to 1 : 2 frames" in picture


def test_a_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(x), float(np.sin(x / 500))) for x in range(5000)]
    picture = svg.line(points)
    drawn = re.search(r'polyline class="curve" points="([^"]*)"', picture)
    assert drawn is not None
    assert len(drawn[1].split()) < 400
    ElementTree.fromstring(picture)


def test_points_that_are_not_finite_are_left_out_of_a_curve() -> None:
    assert "nan" not in svg.line([(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0)])
    assert svg.line([(0.0, float("nan"))]) == ""


@pytest.mark.parametrize(
    ("value", "ticks"), [(0.0, ("0", "0.5")), (0.25, ("0", "0.75")), (3.0, ("2.5", "3.5"))]
)
def test_a_curve_of_one_value_has_no_axis_below_zero(value: float, ticks: tuple) -> None:
    picture = svg.line([(0.0, value), (1.0, value)])
    assert all(f">{tick}</text>" in picture for tick in ticks)
    assert ">-" not in picture


def test_bars_of_labels_are_proportional_and_named() -> None:
    picture = svg.bars([("1", 4), ("2", 2)], unit="clips", what="people")
    assert heights(picture)[0] == pytest.approx(2 * heights(picture)[1])
    assert "2 clips: 2 people" in picture
    ElementTree.fromstring(picture)


def test_text_in_a_plot_is_escaped() -> None:
    assert "<script>" not in svg.histogram([1], low=0, high=2, unit="<script>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.05, "0.05"), (0.00757, "0.0076"), (123.4, "123"), (1234, "1234"), (48_250, "48.2k"),
        (2e6, "2M"), (1e-5, "1e-05"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert svg._short(value) == text


def test_marks_stand_where_their_values_are_and_rejected_ones_are_stacked() -> None:
    picture = svg.histogram(
        [0.5], low=0, high=2, bins=2, marks=[(1.0, "limit 1", "limit")], rejected=[0.6, 0.7], what="clips"
    )
    middle = svg.LEFT + (svg.WIDTH - svg.LEFT - svg.RIGHT) / 2
    assert f'class="limit" x1="{middle:.1f}"' in picture
    assert "2 clips rejected" in picture
    kept, gone = (float(h) for h in re.findall(r'<rect class="bar[^"]*".*?height="([\d.]+)"', picture))
    assert gone == pytest.approx(2 * kept, rel=0.01)
    ElementTree.fromstring(picture)


def test_a_screen_reader_is_told_what_is_drawn() -> None:
    assert 'aria-label="Yaw: median 3&#34;"' in svg.histogram([1], low=0, high=2, label='Yaw: median 3"')


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(-60, 60, [-50, 0, 50]), (0, 500, [0, 100, 200, 300, 400, 500]), (0, 0.3, [0, 0.1, 0.2, 0.3])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    np.testing.assert_allclose(svg.nice_ticks(low, high), ticks, atol=1e-12)
