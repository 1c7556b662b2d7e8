"""Plots as SVG: bars and lines, readable in light and in dark, told apart by colour, by shape and
by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette for the colour-blind, and the same hues, lighter, for a dark ground; grey
# is for controls.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07800", "#3d8fbf", "#666666")
_DARK = ("#4ea8e6", "#ff8f50", "#2ccf9f", "#e597c6", "#f0bb3c", "#93d6fa", "#b4b4b4")
GREY = len(_LIGHT) - 1
_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "circle")
_WIDTH, _FONT = 760, 12


@dataclass(frozen=True)
class Value:
    """A figure with the extremes of its runs."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points (x, figure) in the order of x; `colour`, a number of the palette."""

    name: str
    points: Sequence[tuple[float, Value]]
    colour: int


def shown(value: float) -> str:
    """Return a figure with two or three digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.2g}"
    )


def _style() -> str:
    def rules(colours: Sequence[str], ink: str, faint: str, paper: str) -> str:
        text = f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.faint{{stroke:{faint}}}.whisker{{stroke:{ink}}}"
        return text + "".join(
            f".f{n}{{fill:{c}}}.l{n}{{stroke:{c}}}" for n, c in enumerate(colours)
        )

    light = rules(_LIGHT, "#1f2328", "#d8dee4", "#ffffff")
    dark = rules(_DARK, "#e6edf3", "#3d444d", "#0d1117")
    font = f"text{{font:{_FONT}px system-ui,sans-serif}}.title{{font-size:15px;font-weight:600}}.small{{font-size:11px}}"
    return f"<style>{font}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="ink {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, width: float = 1) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"/>'


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    ground = f'<rect class="paper" width="{_WIDTH}" height="{height:.0f}"/>'
    return "\n".join(
        [head, _style(), ground, _text(16, 26, title, kind="title"), *parts, "</svg>", ""]
    )


def _mark(shape: str, x: float, y: float, colour: int, size: float = 4.0) -> str:
    kind = f'class="f{colour}"'
    if shape == "square":
        return f'<rect {kind} x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'
    if shape in ("triangle", "diamond"):
        corners = (
            [(0, -1.3), (1.2, 0.9), (-1.2, 0.9)]
            if shape == "triangle"
            else [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)]
        )
        points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners)
        return f'<polygon {kind} points="{points}"/>'
    if shape == "cross":
        ends = ((-size, -size, size, size), (-size, size, size, -size))
        return "".join(_line(x + a, y + b, x + c, y + d, f"l{colour}", 2.5) for a, b, c, d in ends)
    if shape == "ring":
        return f'<circle class="l{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="none" stroke-width="2"/>'
    return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'


def bars(
    title: str,
    unit: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Value | None], bool]],
) -> str:
    """Return horizontal bars: `rows` of (label, a figure for each of `names` or None, whether it is
    a control and so grey)."""
    left, right, top, bar, gap = (
        20 + 7 * max(len(label) for label, *_ in rows),
        80,
        66 if len(names) > 1 else 48,
        13,
        12,
    )
    greatest = max(value.high for _, values, _ in rows for value in values if value is not None)
    scale = (_WIDTH - left - right) / greatest
    parts, y = [], float(top)
    x = float(left)
    for number, name in enumerate(names):
        if len(names) > 1:
            parts += [
                f'<rect class="f{number}" x="{x:.1f}" y="40" width="12" height="12"/>',
                _text(x + 17, 50.5, name),
            ]
            x += 40 + 7 * len(name)
    for label, values, control in rows:
        found = [(number, value) for number, value in enumerate(values) if value is not None]
        height = bar * len(found)
        parts.append(_text(left - 10, y + height / 2 + 4, label, "end"))
        for number, value in found:
            kind = f"f{GREY}" if control and len(names) == 1 else f"f{number}"
            faded = ' opacity="0.55"' if control and len(names) > 1 else ""
            width = value.middle * scale
            parts.append(
                f'<rect class="{kind}" x="{left}" y="{y + 1:.1f}" width="{width:.1f}"'
                f' height="{bar - 2}"{faded}/>'
            )
            end = width
            if value.high > value.low:
                parts.append(
                    _line(
                        left + value.low * scale,
                        y + bar / 2,
                        left + value.high * scale,
                        y + bar / 2,
                        "whisker",
                    )
                )
                end = max(width, value.high * scale)
            parts.append(
                _text(left + end + 5, y + bar - 3, f"{shown(value.middle)} {unit}", kind="small")
            )
            y += bar
        y += gap
    parts.append(_line(left, top - 4, left, y - gap + 4, "faint"))
    return _page(title, y + 8, parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten, or with few of them also their doubles and fives, within the
    limits."""
    tens = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1, 2, 5) if high / low < 50 else (1,)
    return [
        ten * factor
        for ten in tens
        for factor in factors
        if low * 0.99 <= ten * factor <= high * 1.01
    ]


def lines(
    title: str,
    across: str,
    up: str,
    series: Sequence[Series],
    every: bool = True,
    zero: bool = False,
) -> str:
    """Return lines over logarithmic axes, each named at its end.

    Arguments: `across`, `up`, what the axes are; `every`, mark each x that has a figure rather than
    powers of ten; `zero`, x begins with 0, which is then where 1 would be, one step to the left of
    the others.
    """
    left, right, top, bottom, height = 64, 178, 48, 46, 400
    xs = sorted({x for one in series for x, _ in one.points})
    place: Callable[[float], float]
    if zero:
        steps = {x: n for n, x in enumerate(xs)}
        place = lambda x: left + 12 + steps[x] * (_WIDTH - left - right - 24) / max(1, len(xs) - 1)  # noqa: E731
    else:
        wide = math.log10(xs[-1] / xs[0]) or 1.0
        place = lambda x: left + 12 + math.log10(x / xs[0]) / wide * (_WIDTH - left - right - 24)  # noqa: E731
    low = min(value.low for one in series for _, value in one.points) * 0.8
    high = max(value.high for one in series for _, value in one.points) * 1.25

    def rise(y: float) -> float:
        return (
            height - bottom - math.log10(y / low) / math.log10(high / low) * (height - bottom - top)
        )

    parts = []
    for tick in _ticks(low, high):
        parts += [
            _line(left, rise(tick), _WIDTH - right, rise(tick), "faint"),
            _text(left - 7, rise(tick) + 4, f"{tick:,g}", "end"),
        ]
    for tick in xs if every or zero else _ticks(xs[0], xs[-1]):
        parts.append(_text(place(tick), height - bottom + 18, f"{tick:,.0f}", "middle"))
    parts.append(_text((left + _WIDTH - right) / 2, height - 10, across, "middle"))
    parts.append(_text(16, top - 8, up, kind="small"))
    ends = []
    for number, one in enumerate(series):
        spots = [(place(x), value) for x, value in one.points]
        path = " ".join(f"{x:.1f},{rise(value.middle):.1f}" for x, value in spots)
        parts.append(
            f'<polyline class="l{one.colour}" points="{path}" fill="none" stroke-width="2"/>'
        )
        for x, value in spots:
            if value.high > value.low:
                parts.append(_line(x, rise(value.low), x, rise(value.high), f"l{one.colour}"))
            parts.append(_mark(_SHAPES[number % len(_SHAPES)], x, rise(value.middle), one.colour))
        ends.append((rise(spots[-1][1].middle), spots[-1][0], number, one))
    parts += _labels(ends, _WIDTH - right + 10, height - bottom)
    return _page(title, height, parts)


def _labels(ends: Sequence[tuple[float, float, int, Series]], x: float, lowest: float) -> list[str]:
    """Return the names of lines at their ends, moved apart where they would cover each other."""
    ordered = sorted(ends, key=lambda end: end[0])
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + 17) if places else y)
    for number in range(len(places) - 1, -1, -1):
        limit = lowest if number == len(places) - 1 else places[number + 1] - 17
        places[number] = min(places[number], limit)
    parts, last = [], max(end for _, end, *_ in ends)
    for (y, end, number, one), place in zip(ordered, places, strict=True):
        if end == last:  # from a line that ends before the others, a link would cross them
            parts.append(
                f'<line class="l{one.colour}" x1="{end + 6:.1f}" y1="{y:.1f}" x2="{x:.1f}"'
                f' y2="{place:.1f}" opacity="0.5"/>'
            )
        parts += [
            _mark(_SHAPES[number % len(_SHAPES)], x + 6, place, one.colour),
            _text(x + 16, place + 4, one.name),
        ]
    return parts
