"""White space shows, control characters do nothing, and bars have the lengths they should."""

from __future__ import annotations

import pytest

from unspool.results import NextToken
from unspool.results.render.marks import Bar, bar, percent, verdict, visible


def entry(before: float, after: float, *, kept: bool = True, cut_by: str | None = None) -> NextToken:
    return NextToken(
        rank=1, token_id=0, text="x", probability=before, processed_probability=after, kept=kept, cut_by=cut_by
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" king", "␣king"),
        ("\n\n", "↵↵"),
        ("\t\r", "⇥␍"),
        ("从💡é", "从💡é"),
        ("\x1b[31m", "\\x1b[31m"),  # would color the terminal
        ("a\u202eb", "a\\u202eb"),  # would turn the line around
        ("\u2028", "\\u2028"),
        ("\u0301", "◌\u0301"),
        ("", ""),
    ],
)
def test_white_space_and_control_characters_are_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(1.0, "100.00%"), (0.12345, "12.35%"), (0.0001, "0.01%"), (0.00005, "<0.01%"), (0.0, "0.00%")],
)
def test_percentages_fit_seven_characters(probability: float, shown: str) -> None:
    assert percent(probability) == shown
    assert len(shown) <= 7


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        (0.5, 1.0, Bar(5, 5, 0)),
        (1.0, 0.5, Bar(5, 0, 5)),
        (0.5, 0.0, Bar(0, 0, 5)),
        (0.0, 0.5, Bar(0, 5, 0)),
        (0.001, 0.001, Bar(1, 0, 0)),  # what is not zero shows
        (0.0, 0.0, Bar(0, 0, 0)),
    ],
)
def test_a_bar_shows_what_stayed_what_was_gained_and_what_was_lost(before: float, after: float, parts: Bar) -> None:
    assert bar(entry(before, after), greatest=1.0, width=10) == parts


def test_a_token_says_how_likely_it_is_or_who_cut_it() -> None:
    assert verdict(entry(0.5, 0.25)) == "25.00%"
    assert verdict(entry(0.5, 0.0, kept=False, cut_by="top_p")) == "cut: top_p"
    assert verdict(entry(0.0, 0.0, kept=False)) == "impossible"
