"""A picture as SVG text: shapes with classes, and a style for light and dark pages.

Knows nothing about language models. The text depends only on the calls: it has no date and no random ids. Texts remain
texts in fonts of the reader's system, so a picture is small.
"""

from __future__ import annotations

from html import escape
from typing import Final

LETTER: Final = 7.3
"""Width in pixels of a character in the font of tokens."""

CHIP: Final = 20
"""Height in pixels of a token's box."""

_STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #24292f } .faint { fill: #57606a }
  .token { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .small { font-size: 10.5px } .end { text-anchor: end } .middle { text-anchor: middle } .bold { font-weight: 700 }
  .back { fill: #ffffff } .gone { opacity: 0.45 }
  .gray { fill: #d0d7de; stroke: #afb8c1 } .blue { fill: #54aeff; stroke: #0969da }
  .green { fill: #4ac26b; stroke: #1a7f37 } .orange { fill: #eac54f; stroke: #9a6700 }
  .purple { fill: #c297ff; stroke: #8250df } .red { fill: #ff8182; stroke: #cf222e }
  line, path { stroke: #8c959f } .none { stroke: #8c959f }
  line, path, rect.none, rect.hollow { fill: none }
  line.blue, path.blue, line.green, path.green, line.orange, path.orange { fill: none }
  line.purple, path.purple, line.red, path.red { fill: none }
  .thick { stroke-width: 2.5 } .dash { stroke-dasharray: 4 3 } .hollow { stroke-dasharray: 3 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .faint { fill: #9198a1 } .back { fill: #0d1117 } line, path, .none { stroke: #656c76 }
    .gray { fill: #2a313c; stroke: #656c76 } .blue { fill: #0c4a8f; stroke: #4493f8 }
    .green { fill: #0f5323; stroke: #3fb950 } .orange { fill: #6a4f03; stroke: #d29922 }
    .purple { fill: #512a97; stroke: #ab7df8 } .red { fill: #8e1519; stroke: #f85149 }
  }
"""


class Picture:
    """Collects shapes. Coordinates are pixels; y grows downward.

    `kind` is a list of classes of the style, such as "blue thick".

    Args:
        width: in pixels.
        height: in pixels; it can be set later.
        title: the subject, for readers that do not see the picture.
    """

    def __init__(self, width: float, height: float = 0.0, *, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._marks: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Write words with their baseline at y; the classes "middle" and "end" center or end them at x."""
        self._marks.append(f'<text{_classes(kind)} x="{x:.1f}" y="{y:.1f}">{escape(words, quote=False)}</text>')

    def turned(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Write words upward, turned by 60 degrees around (x, y)."""
        turn = f'transform="translate({x:.1f} {y:.1f})rotate(-60)"'
        self._marks.append(f"<text{_classes(kind)} {turn}>{escape(words, quote=False)}</text>")

    def rect(self, x: float, y: float, width: float, height: float, kind: str = "") -> None:
        """Draw a box with its upper left corner at (x, y)."""
        size = f'width="{max(width, 0.0):.1f}" height="{height:.1f}"'
        self._marks.append(f'<rect{_classes(kind)} x="{x:.1f}" y="{y:.1f}" {size} rx="3"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        """Draw a straight line."""
        self._marks.append(f'<line{_classes(kind)} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def link(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        """Draw a curve between two points that leaves and arrives horizontally."""
        middle = (x1 + x2) / 2
        path = f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        self._marks.append(f'<path{_classes(kind)} d="{path}"/>')

    def polyline(self, points: list[tuple[float, float]], kind: str = "") -> None:
        """Draw straight lines from point to point."""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._marks.append(f'<path{_classes(kind)} d="{path}"/>')

    def chip(self, x: float, y: float, words: str, kind: str = "gray", *, bold: bool = False) -> float:
        """Draw a token's text in a box with its upper left corner at (x, y). Returns the width of the box."""
        width = chip_width(words)
        self.rect(x, y, width, CHIP, kind)
        fade = " gone" if "gone" in kind.split() else ""
        self.text(x + width / 2, y + 14, words, f"token middle{' bold' if bold else ''}{fade}")
        return width

    def svg(self) -> str:
        """Return the picture with its own background, so that it can be read on any page."""
        size = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        title = f"<title>{escape(self.title, quote=False)}</title>"
        back = f'<rect class="back" width="{self.width:.0f}" height="{self.height:.0f}" rx="8"/>'
        return "\n".join([head, title, f"<style>{_STYLE}</style>", back, *self._marks, "</svg>"]) + "\n"


def chip_width(words: str) -> float:
    """Return the width in pixels of a box with this text."""
    return LETTER * len(words) + 10


def _classes(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
