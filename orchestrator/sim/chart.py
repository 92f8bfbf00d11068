"""The few kinds of charts that a run is drawn with, as SVG text. Colours are the page's: a, b, c."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
_MOST_BARS = 240


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str


@dataclass(frozen=True, slots=True)
class Axis:
    """``place``: a value to pixels; ``ticks``: (value, label)."""

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def panel(title: str, about: str, drawn: str, keys: Sequence[tuple[str, str]]) -> str:
    """A titled card with a chart and the key to its colours."""
    key = "".join(f'<span><i style="background:var(--{colour})"></i>{escape(name)}</span>' for name, colour in keys)
    chart = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{drawn}</svg>' if drawn else ""
    )
    return (
        f'<div class="card"><h2>{escape(title)}</h2><p>{escape(about)}</p>'
        + (f'<div class="key">{key}</div>' if key else "")
        + f"{chart}</div>"
    )


def value_axis(most: float, *, percent: bool = False, unit: str = "") -> Axis:
    """From 0 up to a round number."""
    step = _round_step(most / 4)
    top = most if percent else step * math.ceil(most / step - 1e-9)
    height = HEIGHT - _TOP - _BOTTOM
    if percent:
        step = 0.25
    values = [n * step for n in range(round(top / step) + 1)]
    ticks = [(value, f"{value:.0%}" if percent else f"{_short(value)}{unit}") for value in values]
    return Axis(lambda value: HEIGHT - _BOTTOM - height * value / top, ticks)


def time_axis(seconds: float) -> Axis:
    """From 0 to the end of the run."""
    step = _round_step(seconds / 5)
    ticks = [(n * step, f"{_short(n * step)} s") for n in range(int(seconds / step + 1e-9) + 1)]
    return Axis(lambda value: _LEFT + (WIDTH - _LEFT - _RIGHT) * value / seconds, ticks)


def log_axis(least: float, most: float, unit: str) -> Axis:
    """Powers of ten, and what is between two of them where there are few."""
    low, high = math.log10(least), math.log10(most)
    if high - low < 0.5:
        middle = (low + high) / 2
        low, high = middle - 0.25, middle + 0.25
    else:
        low, high = low - 0.02 * (high - low), high + 0.02 * (high - low)
    parts = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [part * 10.0**power for power in powers for part in parts]
    ticks = [(value, f"{_short(value)} {unit}") for value in values if low <= math.log10(value) <= high]
    width = WIDTH - _LEFT - _RIGHT
    return Axis(lambda value: _LEFT + width * (math.log10(max(value, 1e-9)) - low) / (high - low), ticks)


def lines(
    series: Sequence[Series],
    across: Axis,
    up: Axis,
    *,
    steps: bool = False,
    mark: float | None = None,
    axes: bool = True,
) -> str:
    """Lines, or steps; ``mark`` is a place on the x axis."""
    drawn = _axes(across, up) if axes else ""
    if mark is not None and _LEFT <= across.place(mark) <= WIDTH - _RIGHT:
        x = across.place(mark)
        drawn += f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    for one in series:
        path = _path(one.points, across, up, steps=steps)
        drawn += (
            f'<path class="stroke" stroke="var(--{one.colour})" d="{path}"><title>{escape(one.name)}</title></path>'
        )
    return drawn


def area(series: Series, across: Axis, up: Axis) -> str:
    """What is below a line, lightly, with the axes."""
    begin, end = across.place(series.points[0][0]), across.place(series.points[-1][0])
    floor = up.place(0.0)
    path = f"{_path(series.points, across, up)} L{end:.1f} {floor:.1f} L{begin:.1f} {floor:.1f} Z"
    return _axes(across, up) + f'<path fill="var(--{series.colour})" fill-opacity="0.15" d="{path}"/>'


def bars(groups: Sequence[tuple[str, Sequence[float]]], up: Axis) -> str:
    """Groups side by side, each with a line at its mean; of a large group, evenly spaced ones are shown."""
    shown = [(name, _thinned(values), sum(values) / len(values)) for name, values in groups]
    count = sum(len(values) for _, values, _ in shown) + 2 * (len(shown) - 1)
    slot = (WIDTH - _LEFT - _RIGHT) / count
    drawn, x = _axes(None, up), float(_LEFT)
    for number, (name, values, mean) in enumerate(shown):
        begin = x
        for value in values:
            y = up.place(value)
            width = max(0.5, slot - (1 if slot > 3 else 0))
            drawn += (
                f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{HEIGHT - _BOTTOM - y:.1f}" '
                f'fill="var(--{"abc"[number % 3]})"><title>{escape(name)}: {value:.2f} s</title></rect>'
            )
            x += slot
        y = up.place(mean)
        drawn += f'<line class="mark" x1="{begin:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        x += 2 * slot
    return drawn


def _thinned(values: Sequence[float]) -> Sequence[float]:
    if len(values) <= _MOST_BARS:
        return values
    return [values[round(n * (len(values) - 1) / (_MOST_BARS - 1))] for n in range(_MOST_BARS)]


def _path(points: Sequence[tuple[float, float]], across: Axis, up: Axis, *, steps: bool = False) -> str:
    parts = []
    for n, (x, y) in enumerate(points):
        right, high = f"{across.place(x):.1f}", f"{up.place(y):.1f}"
        if not n:
            parts.append(f"M{right} {up.place(0.0):.1f} V{high}" if steps else f"M{right} {high}")
        else:
            parts.append(f"H{right} V{high}" if steps else f"L{right} {high}")
    return " ".join(parts)


def _axes(across: Axis | None, up: Axis) -> str:
    drawn = ""
    for value, label in up.ticks:
        y = up.place(value)
        drawn += f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for value, label in across.ticks if across else ():
        x = across.place(value) if across else 0.0
        anchor = "end" if x > WIDTH - 40 else "middle"
        drawn += f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>'
    return drawn


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= rough - 1e-12)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
