"""Renderer of traces for a terminal: a tree of all tried tokens, or a step picture if all tried tokens were kept.

The path from the prompt to the best output is the trunk, drawn straight down. The chosen token comes first; its rivals
and their continuations follow below it, indented. The depth of indents does not grow with the length of the output.
Colors only repeat the signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.text import Text

from unspool.results.drawing import draws
from unspool.results.render.flow import flow, joined
from unspool.results.render.trace_marks import LOST, Lookup, heading, style_of, verdict
from unspool.results.render.trace_steps import rounds, steps
from unspool.results.trace import Trace

if TYPE_CHECKING:
    from unspool.records import TraceNode

_PLAIN_WIDTH: Final = 100


@draws(Trace, "terminal")
def trace_terminal(trace: Trace, *, width: int) -> Text:
    """Return the picture of a trace, at most `width` cells wide unless tokens and indents need more."""
    lookup = Lookup(trace)
    body = {"tree": tree, "rounds": rounds, "steps": steps}[picture_of(lookup)](lookup, width)
    return joined([*heading(trace, width), Text(), *body])


@draws(Trace, "plain")
def trace_plain(trace: Trace, *, width: int = _PLAIN_WIDTH) -> str:
    """Return the picture without colors."""
    return "\n".join(line.rstrip() for line in trace_terminal(trace, width=width).plain.splitlines())


def picture_of(lookup: Lookup) -> str:
    """Return the kind of picture for a trace.

    "rounds" if drafts were verified, several positions of a branch per pass; "tree" if branches competed or a branch
    was dropped; else "steps". Contrastive search (with similarities) is always "steps".
    """
    rows = [row for step in lookup.trace.steps for row in step.rows if row.length >= 0]
    if any(row.draft or row.back for row in rows):
        return "rounds"
    if lookup.similarities:
        return "steps"
    given_up = any(not node.outputs for node in lookup.trace.nodes if node.token is not None)
    return "tree" if given_up or _compete(lookup) else "steps"


def _compete(lookup: Lookup) -> bool:
    """Return True if a step asked about several branches for more than a draw per branch."""
    asked = ({row.branch for row in step.rows if row.kind != "sample"} for step in lookup.trace.steps)
    return any(len(branches) > 1 for branches in asked)


def tree(lookup: Lookup, width: int) -> list[Text]:
    """Return the lines of the tree, and the legend."""
    sizes = _sizes(lookup)
    lines = _trunk(lookup, sizes, lookup.children[0], prefix="", opening=None, width=width)
    return [*lines, Text(), *_legend(lookup, width)]


def _sizes(lookup: Lookup) -> list[int]:
    """Return the size of each node's subtree, including the node; children come after parents."""
    sizes = [1] * len(lookup.trace.nodes)
    for node in reversed(lookup.trace.nodes):
        if node.parent is not None:
            sizes[node.parent] += sizes[node.id]
    return sizes


def _trunk(
    lookup: Lookup, sizes: Sequence[int], nodes: list[TraceNode], *, prefix: str, opening: str | None, width: int
) -> Iterator[Text]:
    """Yield the lines of a trunk: runs of tokens, and below a chosen token its rivals with their continuations.

    Args:
        nodes: the alternatives for its first token.
        prefix: start of all lines.
        opening: start of the first line of a side branch; None for the trunk.
    """
    while nodes:
        main = min(nodes, key=lambda node: (node.outputs or (len(lookup.trace.outputs),), -sizes[node.id], node.id))
        rivals = [node for node in nodes if node is not main]
        run = _run(lookup, main)
        nodes = lookup.children[run[-1].id]
        chosen, rest = (run[:1], run[1:]) if rivals else (run, [])
        ends = not rest and not nodes
        begin = opening or prefix + ("╰ " if ends and not rivals else "│ ")
        yield from flow(_pieces(lookup, chosen), first=begin, rest=prefix + ("  " if ends else "│ "), width=width)
        for rival in rivals:
            closes = ends and rival is rivals[-1]
            inner, left = (prefix + "   ", "╰─ ") if closes else (prefix + "│  ", "├─ ")
            yield from _trunk(lookup, sizes, [rival], prefix=inner, opening=prefix + left, width=width)
        if rest:
            begin, going_on = ("│ ", "│ ") if nodes else ("╰ ", "  ")
            yield from flow(_pieces(lookup, rest), first=prefix + begin, rest=prefix + going_on, width=width)
        opening = None


def _run(lookup: Lookup, node: TraceNode) -> list[TraceNode]:
    """Return the node and its successors up to the next end, branching or change of state."""
    run = [node]
    while len(lookup.children[node.id]) == 1 and not _end(lookup, node):
        (after,) = lookup.children[node.id]
        alike = (after.state, after.dropped_at, after.outputs) == (node.state, node.dropped_at, node.outputs)
        if not alike and after.state != "finished":
            break
        node = after
        run.append(node)
    return run


def _pieces(lookup: Lookup, run: list[TraceNode]) -> list[Text]:
    """Return the tokens of a run, and the marks of its end."""
    pieces = [Text(lookup.token(node), style=style_of(node)) for node in run]
    return [*pieces, *_end(lookup, run[-1])]


def _end(lookup: Lookup, node: TraceNode) -> list[Text]:
    """Return the marks of the outputs and branches that end with a node."""
    outputs = lookup.trace.outputs
    finished = [index for index in node.outputs if outputs[index].nodes[-1] == node.id]
    ended = [mark for index in finished for mark in verdict(index, outputs[index], ranked=True)]
    if ended or lookup.children[node.id]:
        return ended
    if node.state == "finished":
        return [Text(f"✗ {node.ends}, not returned", style=LOST)]
    if node.state == "dropped":
        place = "" if node.dropped_at is None else f" at token {lookup.lengths[node.dropped_at]}"
        return [Text(f"✗ {node.why}{place}", style=LOST)]
    return [Text("… unfinished")]


def _legend(lookup: Lookup, width: int) -> list[Text]:
    states = {node.state for node in lookup.trace.nodes if node.token is not None and not lookup.children[node.id]}
    pieces = ["│ chosen", "├─ its rivals"] if _branches(lookup) else []
    pieces += ["★ best output"]
    pieces += ["● other outputs"] if len(lookup.trace.outputs) > 1 else []
    pieces += ["✗ given up"] if states & {"dropped", "finished"} else []
    pieces += ["… still alive at the end"] if "live" in states else []
    return flow([Text(piece, style="dim") for piece in pieces], first="", rest="", width=width)


def _branches(lookup: Lookup) -> bool:
    """Return True if a token has rivals."""
    return any(len(children) > 1 for children in lookup.children.values())
