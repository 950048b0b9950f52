"""Shared parts of the plots: colors, axes, and token texts that matplotlib does not interpret.

Does not know: results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.font_manager import fontManager

from unspool.errors import OptionError
from unspool.results.render.marks import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BLUE: Final = "#0072b2"
SKY: Final = "#56b4e9"
ORANGE: Final = "#e69f00"
VERMILION: Final = "#d55e00"
GRAY: Final = "#808080"
"""Colors that remain different for color-blind readers. Source: Okabe and Ito 2008, Color Universal Design."""

_FALLBACKS: Final = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Emoji", "Noto Sans", "Arial Unicode MS")


def panels(
    ax: Axes | Sequence[Axes] | None, *, rows: int = 1, columns: int = 1, size: tuple[float, float]
) -> list[Axes]:
    """Return the axes to draw on: the given ones, or those of a new figure.

    Args:
        ax: axes of the caller, as many as the picture has panels; None for a new figure.
        rows, columns: of panels.
        size: width and height of a new figure, in inches.

    Raises:
        OptionError: if the number of axes is not the number of panels.
    """
    count = rows * columns
    if ax is None:
        figure, made = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        return list(made.flat)
    given = [ax] if isinstance(ax, Axes) else list(ax)
    if len(given) != count:
        hint = "leave it out, and a new figure is made"
        raise OptionError("ax", len(given), f"must have one axes per panel, here {count}", hint)
    return given


def figure_of(axes: Axes) -> Figure:
    """Return the figure that contains the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes on a figure"
    return figure


def literal(texts: Iterable[Text]) -> None:
    """Let matplotlib draw the texts as they are: `$` starts no formula; rare characters get other fonts."""
    families = [*matplotlib.rcParams["font.family"], *_installed()]
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_fontfamily(families)


def short(text: str, limit: int) -> str:
    """Return a token's text with visible white space and controls, at most `limit` characters long."""
    shown = visible(text[: 4 * limit])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def clean(axes: Axes) -> None:
    """Remove the frame on the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def _installed() -> list[str]:
    known = {font.name for font in fontManager.ttflist}
    return [name for name in _FALLBACKS if name in known]
