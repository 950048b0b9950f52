"""Step pictures of a trace: one line per token with alternatives, or one line per verification round of drafts.

Does not know: trees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from unspool.results.render.flow import flow
from unspool.results.render.marks import percent, visible
from unspool.results.render.trace_marks import LOST, OTHER, Lookup, labelled, verdict

if TYPE_CHECKING:
    from unspool.records import TraceNode, TraceRow

_ROOM_FOR_OTHERS: Final = 24
_INDENT: Final = "      "
_SHORTEST_TOKEN, _LONGEST_TOKEN, _COLUMN = 6, 20, len("  100.00%")


def steps(lookup: Lookup, width: int) -> list[Text]:
    """Return one table per output: one line per token, with its probability and the alternatives."""
    lines: list[Text] = []
    for index, output in enumerate(lookup.trace.outputs):
        lines += [Text()] if index else []
        lines += flow(verdict(index, output, ranked=False), first="", rest="  ", width=width)
        lines += _table(lookup, index, width)
    return lines


def _table(lookup: Lookup, index: int, width: int) -> list[Text]:
    path = lookup.trace.path(index)
    names = [visible(node.text) for node in path]
    columns = 1 + bool(lookup.trace.processors) + bool(lookup.similarities)
    longest = min(_LONGEST_TOKEN, max(_SHORTEST_TOKEN, width - len(_INDENT) - _COLUMN * columns))
    name_width = min(longest, max([len("token"), *map(cell_len, names)]))
    heads = [_head(lookup, number, node, name_width) for number, node in enumerate(path, 1)]
    titles = f"step  {'token':<{name_width}}    model"
    titles += "    drawn" if lookup.trace.processors else ""
    titles += "  similar" if lookup.similarities else ""
    aside = width - cell_len(titles) - 3 >= _ROOM_FOR_OTHERS
    others = "   others ~ similar" if lookup.similarities else "   others"
    lines = [Text(titles + (others if aside else ""), style="dim")]
    for node, head in zip(path, heads, strict=True):
        pieces = _others(lookup, node)
        if not pieces:
            lines.append(head)
        elif aside:
            head.append("   ")
            lines += flow(pieces, first=head, rest=" " * head.cell_len, width=width)
        else:
            lines += [head, *flow(pieces, first=_INDENT, rest=_INDENT, width=width)]
    return lines


def _head(lookup: Lookup, number: int, node: TraceNode, name_width: int) -> Text:
    """Return the number of a step, its token, and the token's probabilities and similarity."""
    name = Text(visible(node.text), style=OTHER)
    name.truncate(name_width, overflow="ellipsis", pad=True)
    row = lookup.row_before(node)
    chosen = next((each for each in row.candidates if each.token == node.token), None) if row else None
    head = Text.assemble((f"{number:>4}  ", "dim"), name)
    head.append(f"  {'' if chosen is None else percent(chosen.probability):>7}")
    if lookup.trace.processors:
        head.append(f"  {'' if chosen is None else percent(chosen.processed_probability):>7}")
    if lookup.similarities:
        similarity = lookup.similarities.get(node.id)
        head.append(f"  {'' if similarity is None else f'{similarity:.3f}':>7}")
    return head


def _others(lookup: Lookup, node: TraceNode) -> list[Text]:
    """Return the alternatives to a token, and the number of tokens that each processor removed."""
    row = lookup.row_before(node)
    if row is None:
        return []
    tried = _tried(lookup, row, node) if lookup.similarities else _best(row, node)
    return [*tried, *(Text(f"{cut.processor} cut {cut.count}", style=LOST) for cut in row.cuts)]


def _best(row: TraceRow, node: TraceNode) -> list[Text]:
    """Return the most probable other tokens, each with the processor that removed it, if any."""
    others = [each for each in row.best if each.token != node.token]
    words = [(each, labelled(each.text, each.probability)) for each in others]
    return [Text(f"{text} ({each.cut_by})", style=LOST) if each.cut_by else Text(text) for each, text in words]


def _tried(lookup: Lookup, row: TraceRow, node: TraceNode) -> list[Text]:
    """Return the other candidates that were tried, with their probabilities and similarities."""
    pieces = []
    for each in row.candidates:
        similarity = None if each.node is None else lookup.similarities.get(each.node)
        if each.token != node.token:
            words = "" if similarity is None else f" ~{similarity:.3f}"
            pieces.append(Text(labelled(each.text, each.probability) + words))
    return pieces


def rounds(lookup: Lookup, width: int) -> list[Text]:
    """Return one line per pass of each output, with the verified draft tokens."""
    lines: list[Text] = []
    for index, output in enumerate(lookup.trace.outputs):
        lines += [Text()] if index else []
        lines += flow(verdict(index, output, ranked=False), first="", rest="  ", width=width)
        lines += _rounds_of(lookup, index, width)
    legend = ["✓ accepted", "✗ rejected", "→ the model's own"]
    return [*lines, Text(), *flow([Text(each, style="dim") for each in legend], first="", rest="", width=width)]


def _rounds_of(lookup: Lookup, index: int, width: int) -> list[Text]:
    path = lookup.trace.path(index)
    held = {node.id for node in path}
    chosen = ((_asked(lookup, node), node) for node in path if not _is_guess(lookup, node))
    own = {step: node for step, node in chosen if step is not None}
    guesses = _guesses(lookup, held)
    passes = sorted(own.keys() | guesses.keys())
    lines = [Text("pass  accepted", style="dim")]
    for number, step in enumerate(passes, 1):
        chain = guesses.get(step, [])
        good = sum(node.id in held for node in chain)
        pieces = [_guess(lookup, node, node.id in held) for node in chain]
        pieces += [Text(f"→ {lookup.token(own[step])}", style=OTHER)] if step in own else []
        count = f"{good} of {len(chain)}" if chain else "-"
        lines += flow(pieces, first=f"{number:>4}  {count:<8}  ", rest=_INDENT, width=width)
    tried = [node for chain in guesses.values() for node in chain]
    good = sum(node.id in held for node in tried)
    return [*lines, Text(f"{good} of {len(tried)} guesses accepted in {len(passes)} passes", style="dim")]


def _is_guess(lookup: Lookup, node: TraceNode) -> bool:
    """Return True for a draft token: written before the model was asked about its position."""
    asked = _asked(lookup, node)
    return asked is not None and not node.draft and node.step <= asked


def _asked(lookup: Lookup, node: TraceNode) -> int | None:
    """Return the step in which the model was first asked about a token's position; None if it was not asked."""
    rows = lookup.rows.get(node.parent) if node.parent is not None else None
    return rows[0][0] if rows else None


def _guesses(lookup: Lookup, held: set[int]) -> dict[int, list[TraceNode]]:
    """Return the draft tokens after an output's tokens, in order, by the step that verified them."""
    found: dict[int, list[TraceNode]] = {}
    known = {0} | held
    for node in lookup.trace.nodes:
        if node.parent in known and _is_guess(lookup, node):
            known.add(node.id)
            found.setdefault(node.step, []).append(node)
    return found


def _guess(lookup: Lookup, node: TraceNode, accepted: bool) -> Text:
    return Text(f"{'✓' if accepted else '✗'} {lookup.token(node)}", style=OTHER if accepted else LOST)
