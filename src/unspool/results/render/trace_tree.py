"""A trace in a terminal: a tree of everything that was tried, or step by step where nothing was tried in vain.

The line from the prompt to the best output is the trunk, drawn straight down. A chosen token comes first; its rivals
stand below it, indented, each with what followed it. Indents stay few, however long an output is. Colors only repeat
what the signs say.
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
    """Return the picture of a trace, at most `width` cells wide where tokens and indents leave room."""
    lookup = Lookup(trace)
    body = {"tree": tree, "rounds": rounds, "steps": steps}[picture_of(lookup)](lookup, width)
    return joined([*heading(trace, width), Text(), *body])


@draws(Trace, "plain")
def trace_plain(trace: Trace, *, width: int = _PLAIN_WIDTH) -> str:
    """Return the picture without colors."""
    return "\n".join(line.rstrip() for line in trace_terminal(trace, width=width).plain.splitlines())


def picture_of(lookup: Lookup) -> str:
    """Return which picture tells a trace best.

    "rounds" where guesses were verified, several places of a branch at once; "tree" where branches competed, or one
    was given up; else "steps".
    """
    rows = [row for step in lookup.trace.steps for row in step.rows if row.length >= 0]
    if any(row.draft or row.back for row in rows):
        return "rounds"
    if lookup.similarities:
        return "steps"
    given_up = any(not node.outputs for node in lookup.trace.nodes if node.token is not None)
    return "tree" if given_up or _compete(lookup) else "steps"


def _compete(lookup: Lookup) -> bool:
    """Return whether some step asked about several branches for more than one draw of each."""
    asked = ({row.branch for row in step.rows if row.kind != "sample"} for step in lookup.trace.steps)
    return any(len(branches) > 1 for branches in asked)


def tree(lookup: Lookup, width: int) -> list[Text]:
    """Return the lines of the tree, and what the signs mean."""
    sizes = _sizes(lookup)
    lines = _trunk(lookup, sizes, lookup.children[0], prefix="", opening=None, width=width)
    return [*lines, Text(), *_legend(lookup, width)]


def _sizes(lookup: Lookup) -> list[int]:
    """Return how many nodes stand below each, itself counted; children come after parents."""
    sizes = [1] * len(lookup.trace.nodes)
    for node in reversed(lookup.trace.nodes):
        if node.parent is not None:
            sizes[node.parent] += sizes[node.id]
    return sizes


def _trunk(
    lookup: Lookup, sizes: Sequence[int], nodes: list[TraceNode], *, prefix: str, opening: str | None, width: int
) -> Iterator[Text]:
    """Yield the lines of a trunk: runs of tokens, and below a chosen token its rivals, with what followed them.

    Args:
        nodes: the alternatives it begins with.
        prefix: what its lines begin with.
        opening: what its first line begins with instead, that of a side branch.
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
    """Return the node and what follows it up to where something ends, branches off or changes."""
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
    """Return the tokens of a run, and what became of it."""
    pieces = [Text(lookup.token(node), style=style_of(node)) for node in run]
    return [*pieces, *_end(lookup, run[-1])]


def _end(lookup: Lookup, node: TraceNode) -> list[Text]:
    """Return the marks of what ends with a node."""
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
    """Return whether some token has rivals."""
    return any(len(children) > 1 for children in lookup.children.values())
