"""The chart: for each case a group of bars, the longer the faster, each group on a scale of its own. A plain SVG.

The picture brings its own background, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from benchmarks.figures import Figure, checkpoint_title, figures

_WIDTH, _MARGIN, _GAP = 960, 24, 36
_BAR, _LINE, _TITLE, _HEAD = 13, 18, 22, 34
_LABEL = 132
_NUMBERS = 118
_STYLE = """
  .back { fill: #ffffff } .text { fill: #24292f } .faint { fill: #57606a }
  .unspool { fill: #0969da } .transformers { fill: #bf8700 } .ctranslate2 { fill: #8250df } .llama { fill: #1a7f64 }
  text { font: 12px system-ui, sans-serif } .head { font-size: 15px; font-weight: 600 } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .text { fill: #e6edf3 } .faint { fill: #9198a1 }
    .unspool { fill: #4493f8 } .transformers { fill: #d29922 } .ctranslate2 { fill: #ab7df8 } .llama { fill: #3fb6a0 }
  }
"""


class _Group(NamedTuple):
    """Bars that are compared with each other."""

    title: str
    figures: tuple[Figure, ...]

    @property
    def height(self) -> int:
        return _TITLE + _LINE * len(self.figures) + 10


class _Panel(NamedTuple):
    """The groups of one checkpoint."""

    title: str
    groups: tuple[_Group, ...]

    @property
    def height(self) -> int:
        return _HEAD + sum(group.height for group in self.groups)


def draw(record: Mapping[str, Any]) -> str:
    """Return the chart of a record's cases against peers."""
    columns: tuple[list[_Panel], list[_Panel]] = ([], [])
    for panel in _panels(record):
        min(columns, key=_height).append(panel)
    height = max(map(_height, columns)) + 2 * _MARGIN
    width = (_WIDTH - 2 * _MARGIN - _GAP) // 2
    marks = [
        mark
        for place, column in enumerate(columns)
        for mark in _column(column, _MARGIN + place * (width + _GAP), width)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    )
    back = f'<rect class="back" width="{_WIDTH}" height="{height}" rx="8"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", back, *marks, "</svg>"]) + "\n"


def _height(panels: Sequence[_Panel]) -> int:
    return sum(panel.height for panel in panels)


def _panels(record: Mapping[str, Any]) -> list[_Panel]:
    """Return the cases to draw: those with a result of a peer."""
    groups: dict[str, dict[tuple[str, str], list[Figure]]] = {}
    for figure in figures(record, "peers"):
        of_checkpoint = groups.setdefault(figure.case["checkpoint"], {})
        of_checkpoint.setdefault((figure.case["name"], figure.measure), []).append(figure)
    return [
        _Panel(checkpoint_title(record, name), tuple(_Group(found[0].title, tuple(found)) for found in cases.values()))
        for name, cases in groups.items()
    ]


def _column(panels: Sequence[_Panel], left: int, width: int) -> list[str]:
    marks, top = [], _MARGIN
    for panel in panels:
        marks.append(_text(left, top + 16, panel.title, "text head"))
        top += _HEAD
        for group in panel.groups:
            marks += _bars(group, left, top, width)
            top += group.height
    return marks


def _bars(group: _Group, left: int, top: int, width: int) -> list[str]:
    """Return a group's title and bars; the fastest one is as long as there is room."""
    marks = [_text(left, top + 13, group.title, "text title")]
    fastest = min(figure.typical / figure.tokens for figure in group.figures)
    room = width - _LABEL - _NUMBERS
    for place, figure in enumerate(group.figures):
        y = top + _TITLE + place * _LINE
        length = max(2.0, room * fastest / (figure.typical / figure.tokens))
        marks.append(_text(left, y + 11, figure.label, "faint"))
        marks.append(
            f'<rect class="{_color(figure)}" x="{left + _LABEL}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
        )
        marks.append(_text(left + _LABEL + length + 6, y + 11, figure.speed, "text"))
    return marks


def _color(figure: Figure) -> str:
    return str(figure.entry["side"]).partition(".")[0]


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
