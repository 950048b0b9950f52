"""HTML of traces for notebooks: the terminal's picture with inline styles.

Opacity and one blue suit light and dark pages.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from rich.console import Console

from unspool.results.drawing import draws
from unspool.results.render.trace_tree import trace_terminal
from unspool.results.trace import Trace

if TYPE_CHECKING:
    from rich.segment import Segment


_WIDTH: Final = 110
_BEST: Final = "#2a8fd0"
_PAGE: Final = "margin:0;line-height:1.4;color:inherit;background:transparent;white-space:pre;overflow-x:auto"


@draws(Trace, "html")
def trace_html(trace: Trace) -> str:
    """Return the picture as a preformatted block."""
    picture = trace_terminal(trace, width=_WIDTH)
    return f'<pre style="{_PAGE}">{"".join(map(_span, picture.render(Console(), end="")))}</pre>'


def _span(segment: Segment) -> str:
    text, style = escape(segment.text), segment.style
    if style is None or not style:
        return text
    look = "font-weight:600" if style.bold else ""
    look += ";opacity:0.65" if style.dim else ""
    look += f";color:{_BEST}" if style.color else ""
    return f'<span style="{look.lstrip(";")}">{text}</span>'
