"""Plots as SVG, by hand: no script, no font, no other file. Colours are the page's (CSS classes c0 to c7). Pure."""

import math
from collections.abc import Callable, Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 28

Points = Sequence[tuple[float, float | None]]


class Line(msgspec.Struct, frozen=True):
    name: str
    points: Points
    colour: int
    dashed: bool = False
    area: bool = False


class Axis(msgspec.Struct, frozen=True):
    low: float
    high: float
    ticks: list[tuple[float, str]]
    at: Callable[[float], float] = lambda value: value  # before it is drawn to scale


def plot(title: str, unit: str, lines: Sequence[Line], across: Axis, up: Axis | None = None) -> str:
    """A figure with its legend."""
    shown = [line for line in lines if any(y is not None for _, y in line.points)]
    up = up or linear(max((y for line in shown for _, y in line.points if y is not None), default=1.0))
    body = _grid(across, up) + "".join(_drawn(line, across, up) for line in shown)
    legend = "".join(
        f'<li class="c{line.colour}{" dashed" if line.dashed else ""}">{escape(line.name)}</li>' for line in shown
    )
    label = escape(f"{title}, {unit}", quote=True)
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(unit)}</span><ul>{legend}</ul></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg></figure>'
    )


def linear(most: float, low: float = 0.0) -> Axis:
    """From `low` to a round number above the most."""
    most = most if most > low else low + 1.0
    step = _round((most - low) / 4)
    count = math.ceil((most - low) / step - 1e-9)
    return Axis(low, low + count * step, [(low + step * i, _number(low + step * i)) for i in range(count + 1)])


def seconds(most: float) -> Axis:
    """Time: to the end of the run, ticks at round numbers."""
    step = next((s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800) if most / s <= 7), 3600)
    many = most > 300
    ticks = [(float(t), f"{t / 60:g} min" if many else f"{t} s") for t in range(0, int(most) + 1, step)]
    return Axis(0.0, max(most, 1.0), ticks)


def logarithmic(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(max(low, 1e-3))), math.ceil(math.log10(max(high, 2e-3)))
    ticks = [(10.0**power, _number(10.0**power)) for power in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0][0], ticks[-1][0], ticks, math.log10)


def nines(most: float) -> Axis:
    """Shares so that each nine is as wide as the one before it: the tail is where the story is."""
    shares = [0.5, 0.9, 0.99, 0.999, 0.9999]
    ticks = [(share, f"{100 * share:g} %") for share in shares if share <= most]
    return Axis(0.0, max(most, 0.9), ticks, lambda share: -math.log10(1 - min(share, 0.999999)))


def _round(value: float) -> float:
    """The next of 1, 2, 5, 10, …"""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _x(axis: Axis, value: float) -> float:
    low, high = axis.at(axis.low), axis.at(axis.high)
    return _LEFT + (axis.at(value) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    low, high = axis.at(axis.low), axis.at(axis.high)
    return HEIGHT - _BOTTOM - (axis.at(max(value, axis.low)) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _grid(across: Axis, up: Axis) -> str:
    parts = []
    for value, name in up.ticks:
        y = _y(up, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for value, name in across.ticks:
        x = _x(across, value)
        anchor = "start" if x < _LEFT + 10 else "end" if x > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{name}</text>')
    return "".join(parts)


def _drawn(line: Line, across: Axis, up: Axis) -> str:
    """One path; a hole in the values is a hole in the line, a value alone is a dot."""
    parts, run = [], []
    for x, y in [*line.points, (0.0, None)]:
        if y is not None:
            run.append((_x(across, x), _y(up, y)))
        elif run:
            parts.append(run)
            run = []
    kind = f"c{line.colour}{' dashed' if line.dashed else ''}"
    drawn = []
    for points in parts:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if line.area:
            floor = HEIGHT - _BOTTOM
            drawn.append(f'<path class="area {kind}" d="M{points[0][0]:.1f} {floor}L{path}V{floor}Z"/>')
        drawn.append(f'<path class="line {kind}" d="M{path}{"h.1" if len(points) == 1 else ""}"/>')
    return "".join(drawn)
