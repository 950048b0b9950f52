"""Shared parts of all renderers: visible white space, percentages, bar lengths, headings and summaries.

Does not know: rich, HTML.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from unspool.results.generation import Completion, Generation
    from unspool.results.next_tokens import NextToken, NextTokens

_MARKS: Final = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_HEADING_LENGTH: Final = 48
_CONTROL: Final = ("C", "Zl", "Zp")


def visible(text: str) -> str:
    """Return the text with white space as visible marks, and control and format characters as escapes.

    A token can therefore not break a line or control the terminal. A leading combining mark gets a dotted circle.
    """
    if text and unicodedata.combining(text[0]):
        text = "◌" + text
    return "".join(_MARKS.get(character) or _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if not unicodedata.category(character).startswith(_CONTROL):
        return character
    return character.encode("unicode_escape").decode("ascii")


def percent(probability: float) -> str:
    """Return the probability as a percentage of at most seven characters."""
    if 0.0 < probability < 0.0001:
        return "<0.01%"
    return f"{100 * probability:.2f}%"


class Bar(NamedTuple):
    """Lengths of the parts of one bar, in cells: unchanged, added and removed by the processors."""

    common: int
    gained: int
    lost: int


def bar(entry: NextToken, *, greatest: float, width: int) -> Bar:
    """Return the parts of the bar in cells. `greatest` fills `width`; a nonzero probability has at least one cell."""
    before = _cells(entry.probability, greatest, width)
    after = _cells(entry.processed_probability, greatest, width)
    return Bar(min(before, after), max(0, after - before), max(0, before - after))


def _cells(value: float, greatest: float, width: int) -> int:
    return max(1, round(width * value / greatest)) if value > 0.0 else 0


def greatest(tokens: NextTokens) -> float:
    """Return the highest probability before or after processing, which has the longest bar."""
    return max(max(entry.probability, entry.processed_probability) for entry in tokens)


def verdict(entry: NextToken) -> str:
    """Return the processed probability of a token, or the processor that removed it."""
    if entry.kept:
        return percent(entry.processed_probability)
    return f"cut: {entry.cut_by}" if entry.cut_by else "impossible"


def heading(tokens: NextTokens) -> str:
    """Return the heading of the chart, with the end of the prompt."""
    if not tokens.prompt:
        return "Next token"
    end = tokens.prompt[-_HEADING_LENGTH:]
    cut = "" if end == tokens.prompt else "…"
    return f"Next token after “{cut}{_one_line(end)}”"


def summary(tokens: NextTokens) -> str:
    """Return the number of tokens that can be drawn, and the total probability of the hidden ones."""
    kept = f"{tokens.num_kept} of {tokens.vocab_size} tokens can be drawn"
    hidden = tokens.num_kept - sum(entry.kept for entry in tokens)
    return f"{kept}; {percent(tokens.hidden_probability)} in {hidden} not shown" if hidden else kept


def processors(tokens: NextTokens) -> str:
    """Return the list of processors in order."""
    return "processors: " + (", ".join(tokens.processors) or "none")


def closing(generation: Generation, completion: Completion) -> str:
    """Return a line with the facts of one completion."""
    count = len(completion.token_ids)
    facts = [completion.finish_reason, f"{count} token{'' if count == 1 else 's'}"]
    if len(generation.completions) == 1:
        facts.append(f"{generation.timing.tokens_per_second:.1f} tokens/s")
    else:
        facts.append(f"score {completion.score:.3f}")
    return " · ".join([*facts, generation.strategy, f"seed {generation.seed}"])


def _one_line(text: str) -> str:
    return "".join(" " if character == " " else visible(character) for character in text)
