"""Plot of the next token's distribution: bars before and after the processors, and the processor of each cut token."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Final

from matplotlib.patches import Patch

from unspool.results.plots.parts import BLUE, GRAY, VERMILION, clean, literal, panels, short
from unspool.results.render.marks import greatest, heading, summary, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unspool.results.next_tokens import NextTokens

_HEIGHT: Final = 0.4
_LONGEST: Final = 24
_HATCHES: Final = ("///", "...", "xxx", "\\\\\\", "ooo", "+++")


def plot_next_tokens(tokens: NextTokens, ax: Axes | None) -> Axes:
    """Draw two bars per shown token, in the order of the entries, first at the top. Returns the axes."""
    (axes,) = panels(ax, size=(7.0, 1.3 + 0.3 * len(tokens)))
    places = range(len(tokens))
    cutters = [name for name in tokens.processors if any(entry.cut_by == name for entry in tokens)]
    hatches = dict(zip(cutters, cycle(_HATCHES), strict=False))
    before = axes.barh([place - _HEIGHT / 2 for place in places], [entry.probability for entry in tokens], _HEIGHT)
    drawn = [entry.processed_probability for entry in tokens]
    axes.barh([place + _HEIGHT / 2 for place in places], drawn, _HEIGHT, color=BLUE)
    room = 0.01 * greatest(tokens)
    for place, (entry, bar) in enumerate(zip(tokens, before, strict=True)):
        bar.set_color(GRAY)
        if entry.cut_by is not None:
            bar.set(facecolor="none", edgecolor=VERMILION, hatch=hatches[entry.cut_by])
        end = max(entry.probability, entry.processed_probability) + room
        text = axes.text(end, place, verdict(entry), va="center", fontsize="small")
        literal([text])
        if not entry.kept:
            text.set_color(VERMILION)
    axes.set_yticks(places, [short(entry.text, _LONGEST) for entry in tokens])
    literal(axes.get_yticklabels())
    axes.set_ylim(len(tokens) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * greatest(tokens))
    axes.set_xlabel(f"probability\n{summary(tokens)}")
    literal([axes.set_title(heading(tokens), loc="left"), axes.xaxis.label])
    cut = [
        Patch(facecolor="none", edgecolor=VERMILION, hatch=hatches[name], label=f"cut by {name}") for name in cutters
    ]
    legend = [Patch(color=GRAY, label="model"), Patch(color=BLUE, label="drawn"), *cut]
    literal(axes.legend(handles=legend, loc="lower right", frameon=False).get_texts())
    clean(axes)
    return axes
