"""Small plots as inline SVG. Colours come from the page (CSS variables), sizes from its width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 320, 158
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 20, 34
BARS_SHOWN = 20

Mark = tuple[float, str, str]  # x, text, class: "median" or "limit"


def histogram(
    values: ArrayLike, *, low: float, high: float, bins: int = 24, unit: str = "", what: str = "frames",
    name: str = "", label: str = "", marks: Sequence[Mark] = (), rejected: ArrayLike = (),
) -> Markup:  # fmt: skip
    """Counts of `values` in equal bins; what lies beyond `low` and `high` is counted in the outer bins.

    `rejected` are other values, stacked on them. `name` is that of the x axis, `label` what a screen reader
    says of the whole.
    """
    edges = np.linspace(low, high, bins + 1)
    kept, gone = (
        np.histogram(np.clip(np.asarray(v, np.float64), low, high), bins=edges)[0] for v in (values, rejected)
    )
    top = max(int((kept + gone).max(initial=0)), 1)
    step = (WIDTH - LEFT - RIGHT) / bins
    parts = []
    for index in range(bins):
        place = f"{_short(edges[index])} to {_short(edges[index + 1])} {unit}"
        below = 0.0
        for counts, kind, word in ((kept, "bar", what), (gone, "bar gone", f"{what} rejected")):
            if counts[index]:
                height = max((HEIGHT - TOP - BOTTOM) * counts[index] / top, 1)
                parts.append(_bar(
                    LEFT + index * step + 0.75, below, step - 1.5, height, f"{place}: {counts[index]} {word}",
                    kind,
                ))  # fmt: skip
                below += height

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max((value - low) / (high - low), 0.0), 1.0)

    parts += [_mark(across(x), text, kind) for x, text, kind in marks]
    ticks = [(across(value), value) for value in nice_ticks(low, high)]
    return _frame(parts, ticks, [(0.0, "0"), (1.0, _short(top))], unit, name, what, label)


def bars(
    counts: Sequence[tuple[str, int]], *, unit: str = "", what: str = "", name: str = "", label: str = ""
) -> Markup:
    """One bar per (label, count), such as a number of something and how often it occurs; 20 at most."""
    shown = counts[:BARS_SHOWN]
    top, step = max([count for _, count in shown] + [1]), (WIDTH - LEFT - RIGHT) / max(len(shown), 1)
    width, parts = min(step - 4, 48), []
    for index, (text, count) in enumerate(shown):
        middle, height = LEFT + (index + 0.5) * step, (HEIGHT - TOP - BOTTOM) * count / top
        if count:
            parts.append(_bar(middle - width / 2, 0, width, max(height, 1), f"{text} {unit}: {count} {what}"))
        parts.append(
            f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    return _frame(parts, [], [(0.0, "0"), (1.0, _short(top))], unit, name, what, label)


def line(points: Sequence[tuple[float, float]], *, unit: str = "", name: str = "", label: str = "") -> Markup:
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
        low, high = max(low - 0.5, min(low, 0.0)), high + 0.5  # a share of 0 has nothing below
    start, span = float(x[0]), max(float(x[-1] - x[0]), 1e-12)
    across = LEFT + (WIDTH - LEFT - RIGHT) * (x - start) / span
    down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    curve = f'<polyline class="curve" points="{path}"/>'
    dot = f'<circle class="dot" cx="{across[-1]:.1f}" cy="{down[-1]:.1f}" r="2.5"/>'
    ticks = [(LEFT, start), (WIDTH - RIGHT, float(x[-1]))]
    return _frame([curve, dot], ticks, [(0.0, _short(low)), (1.0, _short(high))], unit, name, "", label)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most `most` of them."""
    power = 10.0 ** math.floor(math.log10(max(high - low, 1e-9) / most))
    steps = (power, 2 * power, 5 * power, 10 * power, 20 * power)
    step = next(step for step in steps if (high - low) / step <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _bar(x: float, above: float, width: float, height: float, title: str, kind: str = "bar") -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{HEIGHT - BOTTOM - above - height:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="1.5"><title>{escape(title)}</title></rect>'
    )


def _mark(x: float, text: str, kind: str) -> str:
    """A vertical line with its text above, inside of the plot."""
    anchor = "end" if x > WIDTH / 2 else "start"
    return (
        f'<line class="{kind}" x1="{x:.1f}" y1="{TOP - 5}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="tick {kind}" x="{x + (-3 if anchor == "end" else 3):.1f}" y="{TOP - 9}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _frame(
    parts: list[str], x_ticks: Sequence[tuple[float, float]], y_ticks: Sequence[tuple[float, str]], unit: str,
    name: str, what: str, label: str,
) -> Markup:  # fmt: skip
    bottom = HEIGHT - BOTTOM
    lines = [f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for x, value in x_ticks:
        anchor = "end" if x > WIDTH - RIGHT - 14 and value >= 1000 else "middle"
        place = f'x="{x:.1f}" y="{bottom + 13}" text-anchor="{anchor}"'
        lines.append(f'<text class="tick" {place}>{escape(_short(value))}</text>')
    for share, text in y_ticks:
        y = bottom - (HEIGHT - TOP - BOTTOM) * share
        lines.append(
            f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>'
        )
        if share:
            lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
    axis = ", ".join(part for part in (name, unit) if part)
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    lines.append(
        f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(axis)}</text>'
    )
    lines.append(f'<text class="tick" x="2" y="9">{escape(what)}</text>')
    body = "".join([*lines, *parts])
    told = f' aria-label="{escape(label)}"' if label else ""
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"{told}>{body}</svg>')


def _short(value: float) -> str:
    """Three significant digits at most."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 10_000):
            return f"{value / size:.3g}{letter}"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
