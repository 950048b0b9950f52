"""What all pictures share: visible white space, percentages, the lengths of bars, and the sentences around them.

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
    """Return the text with white space as marks and with control and format characters as escapes.

    So a token can neither break a line nor drive the terminal; a combining mark in front stands on a dotted circle.
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
    """Lengths of the parts of one bar: what processing left in place, then what it added, then what it took."""

    common: int
    gained: int
    lost: int


def bar(entry: NextToken, *, greatest: float, width: int) -> Bar:
    """Return the parts in cells; `greatest` fills `width`, and what is not zero never shows as nothing."""
    before = _cells(entry.probability, greatest, width)
    after = _cells(entry.processed_probability, greatest, width)
    return Bar(min(before, after), max(0, after - before), max(0, before - after))


def _cells(value: float, greatest: float, width: int) -> int:
    return max(1, round(width * value / greatest)) if value > 0.0 else 0


def greatest(tokens: NextTokens) -> float:
    """Return the longest bar's probability."""
    return max(max(entry.probability, entry.processed_probability) for entry in tokens)


def verdict(entry: NextToken) -> str:
    """Return the probability a token is drawn with, or who cut it."""
    if entry.kept:
        return percent(entry.processed_probability)
    return f"cut: {entry.cut_by}" if entry.cut_by else "impossible"


def heading(tokens: NextTokens) -> str:
    """Return what the chart shows."""
    if not tokens.prompt:
        return "Next token"
    end = tokens.prompt[-_HEADING_LENGTH:]
    cut = "" if end == tokens.prompt else "…"
    return f"Next token after “{cut}{_one_line(end)}”"


def summary(tokens: NextTokens) -> str:
    """Return how many tokens can be drawn, and how likely those are that are not shown."""
    kept = f"{tokens.num_kept} of {tokens.vocab_size} tokens can be drawn"
    hidden = tokens.num_kept - sum(entry.kept for entry in tokens)
    return f"{kept}; {percent(tokens.hidden_probability)} in {hidden} not shown" if hidden else kept


def processors(tokens: NextTokens) -> str:
    """Return the processors in the order they ran."""
    return "processors: " + (", ".join(tokens.processors) or "none")


def closing(generation: Generation, completion: Completion) -> str:
    """Return the facts of one completion in a line."""
    count = len(completion.token_ids)
    facts = [completion.finish_reason, f"{count} token{'' if count == 1 else 's'}"]
    if len(generation.completions) == 1:
        facts.append(f"{generation.timing.tokens_per_second:.1f} tokens/s")
    else:
        facts.append(f"score {completion.score:.3f}")
    return " · ".join([*facts, generation.strategy, f"seed {generation.seed}"])


def _one_line(text: str) -> str:
    return "".join(" " if character == " " else visible(character) for character in text)
