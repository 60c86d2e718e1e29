"""Plots as SVG: that they are well-formed, to scale, and safe with any name."""

import re
import xml.etree.ElementTree as ET

import pytest
from plots import HEIGHT, WIDTH, Line, linear, logarithmic, nines, plot, seconds


def paths(svg: str, kind: str) -> list[str]:
    root = ET.fromstring(svg)  # noqa: S314  our own
    return [p.attrib["d"] for p in root.iter("path") if kind in p.attrib["class"].split()]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_line_is_drawn_to_scale_inside_the_picture() -> None:
    (path,) = paths(plot("t", "ms", [Line("a", [(0, 0), (5, 50), (10, 100)], 0)], seconds(10)), "line")
    (x0, y0), (x1, y1), (x2, y2) = points(path)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert 0 <= x0 < x2 <= WIDTH
    assert 0 <= y2 < y0 <= HEIGHT


def test_a_hole_in_the_values_is_a_hole_in_the_line() -> None:
    lines = [Line("a", [(0, 1), (1, 1), (2, None), (3, 1)], 0)]
    assert len(paths(plot("t", "ms", lines, seconds(4)), "line")) == 2


def test_a_line_without_values_is_left_out_of_the_legend_too() -> None:
    svg = plot("t", "ms", [Line("gone", [(0, None)], 0), Line("there", [(0, 1)], 1)], seconds(1))
    assert "gone" not in svg
    assert "there" in svg


def test_names_are_escaped() -> None:
    svg = plot("<t>", '"ms"', [Line("<script>", [(0, 1)], 0)], seconds(1))
    ET.fromstring(svg)  # noqa: S314  our own
    assert "<script>" not in svg


@pytest.mark.parametrize("most", [0, 1e-6, 0.3, 1, 7, 99.9, 5000, 3e6])
def test_an_axis_ends_at_a_round_number_above_the_most(most: float) -> None:
    axis = linear(most)
    assert axis.high >= most
    assert axis.high <= max(2.5 * most, 1.0)
    assert 2 <= len(axis.ticks) <= 6


@pytest.mark.parametrize("most", [0.5, 12, 120, 3600, 86_400])
def test_time_has_a_handful_of_ticks(most: float) -> None:
    assert 1 <= len(seconds(most).ticks) <= 25


def test_each_nine_is_as_wide_as_the_one_before() -> None:
    axis = nines(0.9999)
    assert axis.at(0.99) - axis.at(0.9) == pytest.approx(axis.at(0.999) - axis.at(0.99))


def test_a_logarithmic_axis_goes_from_power_to_power() -> None:
    axis = logarithmic(3, 4000)
    assert (axis.low, axis.high) == (1, 10_000)
