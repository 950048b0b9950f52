"""Plot of a comparison: log-probability per token, distinct-n and rep-n of each entry, as grouped bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from unspool.results.plots.parts import BLUE, ORANGE, SKY, VERMILION, clean, figure_of, literal, panels, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unspool.results.comparison import Comparison

_GROUPS: Final = (
    ("log-probability per token", (("mean_logprob", "log-probability", BLUE),)),
    (
        "distinct-n: different n-grams",
        (("distinct_1", "n = 1", "#003f66"), ("distinct_2", "n = 2", BLUE), ("distinct_3", "n = 3", SKY)),
    ),
    (
        "rep-n: repeated n-grams",
        (("rep_2", "n = 2", "#7a3500"), ("rep_3", "n = 3", VERMILION), ("rep_4", "n = 4", ORANGE)),
    ),
)
"""Per panel: its title, and (figure, label, color) of each bar of an entry."""

_WIDTH: Final = 0.8
_LONGEST: Final = 24


def plot_comparison(comparison: Comparison, ax: Sequence[Axes] | None) -> Figure:
    """Draw three panels with a group of bars per entry, first at the top. Returns the figure."""
    count = len(comparison.rows)
    found = panels(ax, columns=len(_GROUPS), size=(11.0, 1.6 + 0.55 * count))
    names = [short(row.name, _LONGEST) for row in comparison.rows]
    for number, (axes, (title, bars)) in enumerate(zip(found, _GROUPS, strict=True)):
        height = _WIDTH / len(bars)
        for place, (figure, label, color) in enumerate(bars):
            values = [_finite(getattr(row.figures, figure)) for row in comparison.rows]
            offset = (place + 0.5) * height - _WIDTH / 2
            made = axes.barh([row + offset for row in range(count)], values, height, color=color, label=label)
            if len(bars) == 1:
                words = ["" if math.isnan(value) else f"{value:.2f}" for value in values]
                axes.bar_label(made, words, padding=3, fontsize="small")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_yticks(range(count), names if number == 0 else [""] * count)
        literal(axes.get_yticklabels())
        if len(bars) > 1:
            axes.set_xlim(0, 1)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.65 / count), ncols=len(bars), frameon=False)
        else:
            axes.margins(x=0.2)
        clean(axes)
    return figure_of(found[0])


def _finite(value: float | None) -> float:
    """Return the figure; NaN, drawn as a gap, if the output is too short for it."""
    return math.nan if value is None or not math.isfinite(value) else value
