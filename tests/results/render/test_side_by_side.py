"""A comparison side by side, stacked, in a notebook and in Markdown: the same facts, safely written."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.results.render.test_charts import Collector
from tests.results.test_comparison import generation
from unspool.results.comparison import Compared, Comparison


def printed(given: Comparison, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(given)
    return [line.rstrip() for line in console.file.getvalue().split("\n")]  # type: ignore[attr-defined]


def three() -> Comparison:
    """Three texts: the second without repetition; all tokens with probability 1/2."""
    return Comparison(
        rows=(
            Compared.of("greedy", generation(" the cat sat and the cat sat and the cat"), unread=("top_p",)),
            Compared.of("nucleus", generation(" the dog\nran off into deep woods", strategy="sample")),
            Compared.of("beam", generation(" the cat sat the cat sat", strategy="beam"), unread=("top_p",)),
        )
    )


def test_a_wide_terminal_has_columns() -> None:
    # greedy: 10 tokens, 4 different; bigrams 4 of 9, trigrams 4 of 8, 4-grams 4 of 7: 0.444 * 0.5 * 0.571 = 0.127
    # beam: 6 tokens, 3 different; bigrams 3 of 5, trigrams 3 of 4, 4-grams 3 of 3: 0.6 * 0.75 * 1 = 0.45
    assert printed(three(), 140) == [
        "Once",
        "",
        f"greedy {'─' * 37}   nucleus (sample) {'─' * 27}   beam {'─' * 39}",
        f"{'the cat sat and the cat sat and the cat':<47}{'the dog':<47}the cat sat the cat sat",
        f"{'':<47}ran off into deep woods",
        "",
        "         tokens  log-prob  per token  perplexity  distinct-1  distinct-2  distinct-3   rep-2   rep-3   rep-4"
        "  diversity  passes  ended by",
        "greedy       10     -6.93     -0.693        2.00       0.400       0.444       0.500   0.556   0.500   0.429"
        "      0.127      10  eos",
        "nucleus       7     -4.85     -0.693        2.00      *1.000      *1.000      *1.000  *0.000  *0.000  *0.000"
        "     *1.000       7  eos",
        "beam          6     -4.16     -0.693        2.00       0.500       0.600       0.750   0.400   0.250  *0.000"
        "      0.450       6  eos",
        "",
        "log-prob: of the text under the model; per token: mean; perplexity: exp(-mean)",
        "distinct-n: share of different n-grams; rep-n: share of repeated ones",
        "diversity: (1 - rep-2) (1 - rep-3) (1 - rep-4)",
        "passes: forward passes of the model in which the entry took part",
        "* best of its column: the most probable, or the least repetitive",
        "0.50 s for all entries together, in one batch",
        "seed 7",
        "top_p: not read by greedy, beam",
        "",
    ]


def test_a_narrow_terminal_has_one_text_below_the_other_and_several_tables() -> None:
    assert printed(three(), 50) == [
        "Once",
        "",
        "greedy ───────────────────────────────────────────",
        "the cat sat and the cat sat and the cat",
        "",
        "nucleus (sample) ─────────────────────────────────",
        "the dog",
        "ran off into deep woods",
        "",
        "beam ─────────────────────────────────────────────",
        "the cat sat the cat sat",
        "",
        "         tokens  log-prob  per token  perplexity",
        "greedy       10     -6.93     -0.693        2.00",
        "nucleus       7     -4.85     -0.693        2.00",
        "beam          6     -4.16     -0.693        2.00",
        "",
        "         distinct-1  distinct-2  distinct-3",
        "greedy        0.400       0.444       0.500",
        "nucleus      *1.000      *1.000      *1.000",
        "beam          0.500       0.600       0.750",
        "",
        "          rep-2   rep-3   rep-4  diversity  passes",
        "greedy    0.556   0.500   0.429      0.127      10",
        "nucleus  *0.000  *0.000  *0.000     *1.000       7",
        "beam      0.400   0.250  *0.000      0.450       6",
        "",
        "         ended by",
        "greedy   eos",
        "nucleus  eos",
        "beam     eos",
        "",
        "log-prob: of the text under the model; per token:",
        "mean; perplexity: exp(-mean)",
        "distinct-n: share of different n-grams; rep-n:",
        "share of repeated ones",
        "diversity: (1 - rep-2) (1 - rep-3) (1 - rep-4)",
        "passes: forward passes of the model in which the",
        "entry took part",
        "* best of its column: the most probable, or the",
        "least repetitive",
        "0.50 s for all entries together, in one batch",
        "seed 7",
        "top_p: not read by greedy, beam",
        "",
    ]


@pytest.mark.parametrize(("width", "across"), [(62, 1), (63, 2), (95, 2), (96, 3), (300, 5)])
def test_columns_are_as_many_as_fit_and_screen_rows_of_like_length(width: int, across: int) -> None:
    five = Comparison(rows=tuple(Compared.of(f"n{index}", generation(" a b")) for index in range(5)))
    rules = [sum(word.startswith("n") for word in line.split()) for line in printed(five, width) if "──" in line]
    assert rules[0] == across
    assert sum(rules) == 5


@pytest.mark.parametrize("width", [20, 33, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = Compared.of("x" * 90, generation(" " + "word" * 60 + " 从前有一个国王" * 9))
    lines = printed(Comparison(rows=(long, *three().rows)), width)
    assert max(map(len, lines)) <= width


def test_all_text_is_shown_however_it_is_wrapped() -> None:
    words = " ".join(f"w{number}" for number in range(200))
    text = " ".join(printed(Comparison(rows=(Compared.of("one", generation(words)),)), 41))
    assert re.findall(r"\bw\d+", text) == words.split()


def test_printing_is_what_a_terminal_of_100_columns_shows_without_colors() -> None:
    assert str(three()).split("\n") == printed(three(), 100)[:-1]


def test_the_best_values_are_bold_as_well_and_only_where_there_are_colors() -> None:
    plain = "\n".join(printed(three(), 140))
    styled = "\n".join(printed(three(), 140, force_terminal=True, color_system="truecolor"))
    assert "\x1b" not in plain
    assert "\x1b[1m    *1.000\x1b[0m" in styled
    assert "\x1b[1mgreedy\x1b[0m" in styled


def test_equal_values_have_no_best_one() -> None:
    same = Comparison(rows=(Compared.of("a", generation("x y")), Compared.of("b", generation("x y"))))
    assert "*" not in str(same)
    shorter = Comparison(rows=(Compared.of("a", generation("x y")), Compared.of("b", generation("x"))))
    assert "*" not in str(shorter)  # distinct-2 has one value and one blank


def test_what_a_model_writes_cannot_drive_the_terminal_or_the_markup() -> None:
    nasty = Comparison(rows=(Compared.of("[red]", generation(" \x1b[31m [bold]hi[/bold] \x07 a\tb")),))
    text = "\n".join(printed(nasty, 100, force_terminal=True, color_system="truecolor"))
    assert "\x1b[31m" not in text and "\\x1b[31m [bold]hi[/bold] \\x07 a⇥b" in text
    assert "[red]" in text


def test_several_outputs_other_seeds_and_token_ids_are_told() -> None:
    first = generation("a b", seed=1)
    both = Comparison(
        rows=(
            Compared.of("greedy", replace(first, completions=first.completions * 3)),
            Compared.of("other", generation("a b", seed=2)),
        )
    )
    text = str(both)
    assert "greedy (1 of 3 outputs) ─" in text
    assert "other (greedy) ─" in text
    assert "seed" not in text
    ids = replace(first, prompt=None, completions=(replace(first.completions[0], text="", tokens=()),))
    assert str(Comparison(rows=(Compared.of("greedy", ids),))).split("\n")[1] == "0 1"
    silent = replace(first, completions=(replace(first.completions[0], text=" "),))
    assert "(no text)" in str(Comparison(rows=(Compared.of("greedy", silent),)))


def test_markdown() -> None:
    two = Comparison(
        rows=(
            Compared.of("a|b", generation("x ```x``` x x"), unread=("top_p",)),
            Compared.of("c", generation("p q r s")),
        )
    )
    # x x x: the second word is another one; bigrams 3 of 3, so rep-2 is 0 in both
    assert two.to_markdown().split("\n") == [
        "| | tokens | log-prob | per token | perplexity | distinct-1 | distinct-2 | distinct-3 | rep-2 | rep-3 "
        "| rep-4 | diversity | passes | ended by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        "| a\\|b | 4 | -2.77 | -0.693 | 2.00 | 0.500 | 1.000 | 1.000 | 0.000 | 0.000 | 0.000 | 1.000 | 4 | eos |",
        "| c | 4 | -2.77 | -0.693 | 2.00 | **1.000** | 1.000 | 1.000 | 0.000 | 0.000 | 0.000 | 1.000 | 4 | eos |",
        "",
        "- log-prob: of the text under the model; per token: mean; perplexity: exp(-mean)",
        "- distinct-n: share of different n-grams; rep-n: share of repeated ones",
        "- diversity: (1 - rep-2) (1 - rep-3) (1 - rep-4)",
        "- passes: forward passes of the model in which the entry took part",
        "- 0.50 s for all entries together, in one batch",
        "- seed 7",
        "- top_p: not read by a|b",
        "",
        "**Prompt**",
        "",
        "```text",
        "Once",
        "```",
        "",
        "**a\\|b**",
        "",
        "````text",
        "x ```x``` x x",
        "````",
        "",
        "**c**",
        "",
        "```text",
        "p q r s",
        "```",
        "",
    ]


def test_the_html_is_self_contained_escaped_and_holds_all() -> None:
    rows = (*three().rows, Compared.of("<i>", generation("<b>1 < 2</b>", prompt="a & b")))
    page = Collector(Comparison(rows=rows)._repr_html_())
    assert set(page.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert page.attributes <= {"style", "dir"}
    assert "<b>1 < 2</b>" in page.text and "<i>" in page.text
    assert "the cat sat and the cat sat and the cat" in page.text
    assert "top_p: not read by greedy, beam" in page.text
    assert page.tags.count("tr") == 1 + 4
    # nucleus has 4 ones and 3 zeros, <i> with its three tokens 3 and 2, beam a zero
    assert page.text.count("*1.000") == 7 and page.text.count("*0.000") == 6
