"""The next-token chart in plain ASCII, for logs, pipes and doctests.

Does not know: colors, the width of a terminal.
"""

from __future__ import annotations

from typing import Final

from unspool.results.drawing import draws
from unspool.results.next_tokens import NextToken, NextTokens
from unspool.results.render.marks import bar, greatest, percent, processors, summary, verdict

_WIDTH: Final = 30


@draws(NextTokens, "plain")
def next_tokens_plain(tokens: NextTokens) -> str:
    """Return the chart, one token per line: rank, token, model probability, bar, and processed probability or "cut"."""
    names = [ascii(entry.text) for entry in tokens]
    name_width = max(5, *map(len, names))
    head = f"{'rank':>4}  {'token':<{name_width}}  {'model':>7}  {'':{_WIDTH}}  drawn"
    longest = greatest(tokens)
    lines = [
        f"{entry.rank:>4}  {name:<{name_width}}  {percent(entry.probability):>7}  "
        f"{_bar(entry, longest):<{_WIDTH}}  {verdict(entry)}"
        for entry, name in zip(tokens, names, strict=True)
    ]
    legend = "# kept  + gained  . lost"
    return "\n".join([head, *lines, "", f"{summary(tokens)}; {processors(tokens)}", legend])


def _bar(entry: NextToken, longest: float) -> str:
    parts = bar(entry, greatest=longest, width=_WIDTH)
    return "#" * parts.common + "+" * parts.gained + "." * parts.lost
