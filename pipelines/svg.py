"""Small plots as inline SVG. Colours come from the page (CSS variables), sizes from its width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 24


def histogram(
    values: ArrayLike, *, low: float, high: float, bins: int = 24, unit: str = "", what: str = "frames"
) -> Markup:
    """Counts of `values` in equal bins; what lies beyond `low` and `high` is counted in the outer bins."""
    numbers = np.clip(np.asarray(values, np.float64), low, high)
    counts, edges = np.histogram(numbers, bins=bins, range=(low, high))
    top = max(int(counts.max(initial=0)), 1)
    step = (WIDTH - LEFT - RIGHT) / bins
    parts = []
    for index, count in enumerate(counts):
        if count:
            height = max((HEIGHT - TOP - BOTTOM) * count / top, 1)
            title = f"{_short(edges[index])} to {_short(edges[index + 1])} {unit}: {count} {what}"
            parts.append(
                f'<rect class="bar" x="{LEFT + index * step + 0.75:.1f}" '
                f'y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{step - 1.5:.1f}" height="{height:.1f}" rx="1.5">'
                f"<title>{escape(title)}</title></rect>"
            )
    ticks = [(LEFT + (WIDTH - LEFT - RIGHT) * share, low + (high - low) * share) for share in (0, 0.5, 1)]
    return _frame(parts, ticks, [(0.0, "0"), (1.0, _short(top))], unit)


def bars(counts: Sequence[tuple[str, int]], *, unit: str = "", what: str = "") -> Markup:
    """One bar per (label, count), such as a number of something and how often it occurs; 20 labels at
    most."""
    shown = counts[:20]
    top, step = max([count for _, count in shown] + [1]), (WIDTH - LEFT - RIGHT) / max(len(shown), 1)
    width, parts = min(step - 4, 48), []
    for index, (label, count) in enumerate(shown):
        middle, height = LEFT + (index + 0.5) * step, (HEIGHT - TOP - BOTTOM) * count / top
        title = escape(f"{label} {unit}: {count} {what}")
        parts.append(
            f'<rect class="bar" x="{middle - width / 2:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}" rx="1.5"><title>{title}</title></rect>'
            f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    return _frame(parts, [], [(0.0, "0"), (1.0, _short(top))], unit)


def line(points: Sequence[tuple[float, float]], *, unit: str = "") -> Markup:
    """One curve through (x, y) with increasing x; it is thinned to what the width can show."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return Markup("")
    thinned = finite[:: max(len(finite) // 300, 1)]
    if thinned[-1] != finite[-1]:
        thinned.append(finite[-1])
    x, y = np.array(thinned, np.float64).T
    low, high = float(y.min()), float(y.max())
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    start, span = float(x[0]), max(float(x[-1] - x[0]), 1e-12)
    across = LEFT + (WIDTH - LEFT - RIGHT) * (x - start) / span
    down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    curve = f'<polyline class="curve" points="{path}"/>'
    dot = f'<circle class="dot" cx="{across[-1]:.1f}" cy="{down[-1]:.1f}" r="2.5"/>'
    ticks = [(LEFT, start), (WIDTH - RIGHT, float(x[-1]))]
    return _frame([curve, dot], ticks, [(0.0, _short(low)), (1.0, _short(high))], unit)


def _frame(
    parts: list[str], x_ticks: Sequence[tuple[float, float]], y_ticks: Sequence[tuple[float, str]], unit: str
) -> Markup:
    bottom = HEIGHT - BOTTOM
    lines = [f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for number, (x, value) in enumerate(x_ticks):
        anchor = "start" if number == 0 else "end" if number == len(x_ticks) - 1 else "middle"
        suffix = "" if number < len(x_ticks) - 1 else unit if unit == "°" else f" {unit}" if unit else ""
        text = escape(_short(value) + suffix)
        lines.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>')
    for share, label in y_ticks:
        y = bottom - (HEIGHT - TOP - BOTTOM) * share
        lines.append(
            f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{escape(label)}</text>'
        )
        if share:
            lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
    body = "".join([*lines, *parts])
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{body}</svg>')


def _short(value: float) -> str:
    """Three significant digits at most."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 10_000 or abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
