"""Plot of a trace: the tree of all tokens that the strategy tried (x = position in the output, y = rank).

Owns: the ranks and cumulative scores of nodes. Draft tokens of a second model are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from unspool.errors import OptionError
from unspool.results.plots.parts import BLUE, GRAY, clean, literal, panels, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unspool.records import TraceNode
    from unspool.results.trace import Trace

_LONGEST: Final = 10
_BOX: Final = "round,pad=0.3"


class Place(NamedTuple):
    """The place of a node. position: number of tokens up to it. rank: from 1. score: sum of the scores up to it."""

    position: int
    rank: int
    score: float


def places(trace: Trace) -> dict[int, Place]:
    """Return node id --> place; nodes of one position are ranked by cumulative score, best first, then by id.

    A token without a score adds 0.
    """
    totals: dict[int, tuple[int, float]] = {}
    for node in trace.nodes:
        if node.draft:
            continue
        position, total = (0, 0.0) if node.parent is None else totals[node.parent]
        step = 0 if node.token is None else 1
        totals[node.id] = (position + step, total + (node.score or 0.0))
    ranked: dict[int, list[int]] = {}
    for node_id in sorted(totals, key=lambda each: (-totals[each][1], each)):
        ranked.setdefault(totals[node_id][0], []).append(node_id)
    ranks = {node_id: rank for column in ranked.values() for rank, node_id in enumerate(column, 1)}
    return {node_id: Place(position, ranks[node_id], total) for node_id, (position, total) in totals.items()}


def plot_trace(trace: Trace, ax: Axes | None, *, max_tokens: int) -> Axes:
    """Draw a box per node with its token and cumulative score, and a line to its parent. Returns the axes."""
    if max_tokens < 1:
        raise OptionError("max_tokens", max_tokens, "must be at least 1", "it is the number of drawn positions")
    found = places(trace)
    deepest = max(place.position for place in found.values())
    shown = {node_id: place for node_id, place in found.items() if place.position <= max_tokens}
    columns, lowest = min(deepest, max_tokens), max(place.rank for place in shown.values())
    (axes,) = panels(ax, size=(2.2 + 0.95 * columns, 1.5 + 0.5 * lowest))
    for node_id, place in shown.items():
        _draw_node(axes, trace.nodes[node_id], place, shown)
    axes.set_xlim(-0.6, columns + 0.6)
    axes.set_ylim(lowest + 0.6, 0.4)
    axes.set_xticks(range(columns + 1), ["prompt", *map(str, range(1, columns + 1))])
    axes.set_yticks(range(1, lowest + 1))
    axes.set_xlabel("token of the output")
    axes.set_ylabel("rank by cumulative score")
    cut = f", first {columns} of {deepest} tokens" if deepest > columns else ""
    title = f"{trace.strategy}, seed {trace.seed}{cut}\nbold: best output; gray: given up; numbers: cumulative scores"
    literal([axes.set_title(title, loc="left", fontsize="medium")])
    clean(axes)
    return axes


def _draw_node(axes: Axes, node: TraceNode, place: Place, shown: dict[int, Place]) -> None:
    """Draw a node above the line to its parent; both have the node's id as `gid`."""
    best, given_up = 0 in node.outputs, node.state == "dropped" or node.state == "finished"
    color = BLUE if best else GRAY if given_up else axes.yaxis.label.get_color()
    width = 2.5 if best else 0.8 if given_up else 1.2
    if node.parent is not None:
        parent = shown[node.parent]
        (line,) = axes.plot([parent.position, place.position], [parent.rank, place.rank], color=color, linewidth=width)
        line.set(gid=f"edge-{node.id}", zorder=2 if best else 1)
    words = "▸" if node.token is None else f"{short(node.text, _LONGEST)}\n{place.score:.2f}"
    words += f" ({node.ends})" if node.ends else ""
    text = axes.text(place.position, place.rank, words, ha="center", va="center", fontsize="small", color=color)
    text.set(gid=f"node-{node.id}", zorder=4 if best else 3, fontweight="bold" if best else "normal")
    edge = {"edgecolor": color, "linewidth": width, "linestyle": ":" if given_up else "-"}
    text.set_bbox({"boxstyle": _BOX, "facecolor": axes.get_facecolor(), **edge})
    literal([text])
