"""report/curve.py: points in, one SVG file out."""

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gradinv.errors import ConfigError
from gradinv.report.curve import write_curve

WORDS: dict[str, Any] = {"title": "a < b", "across": "step", "up": "cost"}


def drawn(points, **settings):
    write_curve(Path("c.svg"), points, **(WORDS | settings))
    text = Path("c.svg").read_text()
    ET.fromstring(text)
    line = re.search(r'<polyline[^>]* points="([^"]*)"', text)
    assert line is not None
    return [tuple(map(float, pair.split(","))) for pair in line[1].split()], text


def test_a_curve_rises_where_its_values_do():
    points, text = drawn([(0, 1.0), (10, 2.0), (20, 3.0)])
    assert [x for x, _ in points] == [60.0, 264.0, 468.0]
    assert [y for _, y in points] == [216.0, 126.0, 36.0]
    assert "a &lt; b" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_logarithmic_axis_leaves_out_what_has_no_place_on_it():
    points, text = drawn([(0, 0.01), (1, 0.1), (2, 1.0), (3, 0.0), (4, math.nan)], logarithmic=True)
    assert [y for _, y in points] == [216.0, 126.0, 36.0]
    assert ">0.1<" in text


def test_many_points_are_means():
    points, _ = drawn([(n, float(n % 2)) for n in range(1200)])
    assert len(points) == 120
    points, _ = drawn([(1, 5.0)])
    assert points == [(264.0, 126.0)]


def test_nothing_to_draw():
    with pytest.raises(ConfigError, match="expected at least one point to draw, got none"):
        write_curve(Path("c.svg"), [(0, math.inf)], **WORDS)
