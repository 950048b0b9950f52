"""The next-token chart in a terminal, in plain ASCII and in a notebook: the same facts, safely written."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.results.test_comparison import generation
from unspool.results import NextTokens, TopLogprob
from unspool.results.render.html import generation_html
from unspool.types import Distribution

NAMES = [" king", "\n", "<b>&", "\x1b[31m", "[red]", "💡"]


class Words:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(NAMES[i] for i in ids)


def chart(limit: int = 20, prompt: str | None = "Once <i>\nupon") -> NextTokens:
    logprobs = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]).log()
    scores, cut = logprobs.clone(), torch.full((6,), -1)
    scores[1], cut[1] = -math.inf, 0
    scores[4:], cut[4:] = -math.inf, 2
    traced = Distribution(logprobs, scores, cut, ("bad_words_ids", "temperature", "top_p"))
    return NextTokens.from_distribution(traced, Words(), limit=limit, prompt=prompt)


def printed(width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(chart())
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(out, str)
    return out


class Collector(HTMLParser):
    """Checks that tags close in order, and keeps text and tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_plain_chart_is_ascii_and_says_it_all() -> None:
    text = str(chart())
    assert text.isascii()
    # 0.5 / 0.7 = 0.7143 fills the 30 cells; 0.5 takes 21 of them; 0.2 takes 8, all lost
    assert text.splitlines() == [
        "rank  token           model                                  drawn",
        "   1  ' king'        50.00%  #####################+++++++++  71.43%",
        "   3  '<b>&'         10.00%  ####++                          14.29%",
        "   4  '\\x1b[31m'     10.00%  ####++                          14.29%",
        "   2  '\\n'           20.00%  ........                        cut: bad_words_ids",
        "   5  '[red]'         5.00%  ..                              cut: top_p",
        "   6  '\\U0001f4a1'    5.00%  ..                              cut: top_p",
        "",
        "3 of 6 tokens can be drawn; processors: bad_words_ids, temperature, top_p",
        "# kept  + gained  . lost",
    ]


def test_what_is_not_shown_is_counted() -> None:
    assert "3 of 6 tokens can be drawn; 28.57% in 2 not shown;" in str(chart(limit=1))


def test_the_terminal_chart_writes_tokens_literally() -> None:
    text = printed()
    assert "␣king" in text and "↵" in text and "💡" in text
    assert "[red]" in text
    assert "\x1b" not in text and "\\x1b[31m" in text
    assert "Next token after “Once <i>↵upon”" in text
    assert "cut: bad_words_ids" in text


@pytest.mark.parametrize("width", [50, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("cut: " in line for line in lines) == 3


def test_without_color_the_signs_alone_tell_kept_gained_and_lost() -> None:
    rows = {line.split()[0]: line for line in printed(no_color=True).splitlines() if line.lstrip()[:1].isdigit()}
    assert "█" in rows["1"] and "▓" in rows["1"] and "░" not in rows["1"]
    assert "░" in rows["2"] and "█" not in rows["2"]


def test_with_color_cut_tokens_are_dim_and_struck() -> None:
    text = printed(force_terminal=True, color_system="truecolor")
    (line,) = [line for line in text.splitlines() if "[red]" in line]
    assert "\x1b[2;9m[red]" in line


def test_the_html_chart_is_self_contained_and_escaped() -> None:
    page = Collector(chart()._repr_html_())
    assert set(page.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "bdi", "span"}
    assert page.attributes <= {"style", "title"}
    assert "<b>&" in page.text and "Once <i>↵upon" in page.text
    assert "cut: bad_words_ids" in page.text
    assert "\\x1b[31m" in page.text
    assert page.tags.count("tr") == 1 + 6


def test_the_html_bars_are_as_long_as_the_probabilities() -> None:
    html = chart(limit=1)._repr_html_()
    assert "width:100.00%" in html  # drawn, 0.7143
    assert "width:70.00%" in html  # the model's own, 0.5


def test_a_generation_in_a_notebook_is_escaped_too() -> None:
    completion = SimpleNamespace(
        text="<b>1 < 2</b>\n",
        finish_reason="eos",
        token_ids=(1,),
        score=0.0,
        tokens=("<b>1 < 2</b>\n",),
        logprobs=(-1.0,),
        top_logprobs=None,
    )
    result: Any = SimpleNamespace(
        prompt="a & b",
        completions=(completion,),
        echo=False,
        seed=3,
        strategy="greedy",
        timing=SimpleNamespace(tokens_per_second=12.34),
    )
    page = Collector(generation_html(result))
    assert "<b>1 < 2</b>" in page.text and "a & b" in page.text
    assert "eos · 1 token · 12.3 tokens/s · greedy · seed 3" in page.text


class Tokens(HTMLParser):
    """Keeps the spans with a title, which are the tokens of a generation."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside = "title" in values
        if self.inside:
            self.found.append({**values, "text": ""})

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1]["text"] += data


def tinted(*tokens: tuple[str, float], text: str | None = None, best: Any = None) -> str:
    """Return the HTML of a generation of tokens with these probabilities."""
    words = tuple(token for token, _ in tokens)
    made = generation(" ".join("x" for _ in tokens))
    logprobs = tuple(math.log(p) if p else -math.inf for _, p in tokens)
    changes = {"text": "".join(words) if text is None else text, "tokens": words, "logprobs": logprobs}
    output = replace(made.completions[0], **changes, top_logprobs=best)
    return replace(made, completions=(output,))._repr_html_()


def test_tokens_of_a_generation_are_tinted_by_probability_and_tell_it() -> None:
    best = ((TopLogprob(1, " a\n", math.log(0.5)),), (TopLogprob(2, '">', 0.0),), ())
    tokens = Tokens(tinted((" a", 0.5), (" bc", 1.0), ("d", 0.0), best=best)).found
    assert [each["text"] for each in tokens] == [" a", " bc", "d"]
    assert [each["title"] for each in tokens] == [
        "50.00%; most probable: ␣a↵ 50.00%",
        '100.00%; most probable: "> 100.00%',
        "0.00%",
    ]
    # ln 2 / 7 * 0.55 = 0.054; a certain token has no tint, and the strongest is 0.55
    assert [each["style"].split(",")[-1] for each in tokens] == ["0.054)", "0.000)", "0.550)"]


def test_a_stop_string_inside_a_token_cuts_its_span() -> None:
    tokens = Tokens(tinted((" a", 0.5), (" bc", 0.5), ("d", 0.5), text=" a b")).found
    assert [each["text"] for each in tokens] == [" a", " b"]


def test_hostile_tokens_of_a_generation_stay_text() -> None:
    hostile = ("</script>", "<img src=x onerror=alert(1)>", "a\u202eb", "\x1b[31m", '" onmouseover="x', "w" * 10_000)
    html = tinted(*((token, 0.5) for token in hostile), best=((TopLogprob(1, '"><i>', -1.0),),) * len(hostile))
    page = Collector(html)
    assert set(page.tags) <= {"div", "span"} and page.attributes <= {"style", "title", "dir"}
    shown = [each["text"] for each in Tokens(html).found]
    assert shown == [*hostile[:2], "a\\u202eb", "\\x1b[31m", *hostile[4:]]
