"""The tree of a search, as in `Trace.plot`: x is the position in the output, y the rank by cumulative score."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from tools.guide.svg import CHIP, Picture, chip_width
from tools.guide.tokens import shorten
from unspool.records import TraceNode
from unspool.results.trace import Trace

COLORS: Final = ("blue", "purple", "green", "orange")
"""The boxes of the outputs, best first."""

_ROW: Final = 42
_LEFT: Final = 26


class Place(NamedTuple):
    """The place of a node. position: number of tokens up to it. rank: from 1. total: sum of the figures up to it."""

    position: int
    rank: int
    total: float


Figure = Literal["score", "logprob"]


def places(trace: Trace, figure: Figure) -> dict[int, Place]:
    """Return node id --> place; nodes of one position are ranked by the sum of a figure, best first, then by id."""
    totals: dict[int, tuple[int, float]] = {}
    for node in trace.nodes:
        position, total = (-1, 0.0) if node.parent is None else totals[node.parent]
        totals[node.id] = (position + 1, total + (getattr(node, figure) or 0.0))
    ranked: dict[int, list[int]] = {}
    for key in sorted(totals, key=lambda each: (-totals[each][1], each)):
        ranked.setdefault(totals[key][0], []).append(key)
    ranks = {key: rank for column in ranked.values() for rank, key in enumerate(column, 1)}
    return {key: Place(position, ranks[key], total) for key, (position, total) in totals.items()}


def draw_tree(
    trace: Trace,
    *,
    title: str,
    figure: Figure = "score",
    marked: Collection[int] = (),
    all_outputs: bool = False,
) -> Picture:
    """Return the tree of all tokens that the search tried; those that it gave up are faded.

    Args:
        figure: the figure to sum up: "score" after the processors, or "logprob" of the model.
        marked: token ids with an orange box, such as forced words.
        all_outputs: True to color each output; False to color the first alone.
    """
    found = places(trace, figure)
    depth = max(place.position for place in found.values())
    column = {
        position: 22 + max(chip_width(shorten(trace.nodes[key].text, 11)) for key in _at(found, position))
        for position in range(1, depth + 1)
    }
    starts = {0: float(_LEFT)} | {
        position: _LEFT + 26 + sum(column[before] for before in range(1, position)) for position in range(1, depth + 1)
    }
    lowest = max(place.rank for place in found.values())
    picture = Picture(starts[depth] + column[depth] + 4, 44 + _ROW * lowest, title=title)
    for position in range(1, depth + 1):
        picture.text(starts[position], 18, str(position), "small faint")
    order = sorted(found, key=lambda key: bool(trace.nodes[key].outputs))
    for key in order:
        node = trace.nodes[key]
        if node.parent is not None:
            parent = trace.nodes[node.parent]
            left = starts[found[parent.id].position] + (_width(parent) if parent.token is not None else 10)
            kind = _kind(node, marked=(), all_outputs=all_outputs)
            line = "gone dash" if _lost(node) else f"{kind.split()[0]} thick" if kind != "none" else ""
            picture.link(left, _middle(found[parent.id]), starts[found[key].position], _middle(found[key]), line)
    for key in order:
        node, place = trace.nodes[key], found[key]
        if node.token is None:
            picture.text(_LEFT, _middle(place) + 4, "▸", "middle")
            continue
        kind = _kind(node, marked=marked, all_outputs=all_outputs)
        picture.rect(starts[place.position], _middle(place) - CHIP / 2, _width(node), CHIP, "back")
        bold = 0 in node.outputs
        picture.chip(starts[place.position], _middle(place) - CHIP / 2, shorten(node.text, 11), kind, bold=bold)
        score = f"{place.total:.2f}" + (f" {node.ends}" if node.ends == "eos" else "")
        fade = " gone" if _lost(node) else ""
        center = starts[place.position] + _width(node) / 2
        picture.text(center, _middle(place) + 22, score, f"small faint middle{fade}")
    return picture


def _at(found: dict[int, Place], position: int) -> list[int]:
    return [key for key, place in found.items() if place.position == position]


def _middle(place: Place) -> float:
    return 14.0 + _ROW * (place.rank - 0.5) + 4


def _width(node: TraceNode) -> float:
    return chip_width(shorten(node.text, 11))


def _lost(node: TraceNode) -> bool:
    return node.state in ("dropped", "finished")


def _kind(node: TraceNode, *, marked: Collection[int], all_outputs: bool) -> str:
    """Return the classes of a node's box."""
    color = "orange" if node.token in marked else None
    if _lost(node):
        return f"{color or 'gray'} gone"
    if node.outputs and (all_outputs or 0 in node.outputs):
        return color or COLORS[min(node.outputs) % len(COLORS)]
    return color or "none"
