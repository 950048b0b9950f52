"""HTML of results for notebooks: self-contained, with inline styles and without scripts.

Text has the page's color and bars have medium brightness, so that the HTML suits light and dark pages.
"""

from __future__ import annotations

import math
import re
from html import escape
from typing import Final

from unspool.results.drawing import draws
from unspool.results.generation import Completion, Generation
from unspool.results.next_tokens import NextToken, NextTokens
from unspool.results.render.marks import closing, greatest, heading, percent, processors, summary, verdict, visible

_DRAWN: Final = "#2a8fd0"
_MODEL: Final = "rgba(128,128,128,0.4)"
_FAINT: Final = "opacity:0.65"
_CELL: Final = "border:none;background:transparent;padding:1px 10px 1px 0;vertical-align:middle;white-space:nowrap"
_NUMBER: Final = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"
_STRONGEST: Final = 0.55
"""Opacity of the background of a token with the log-probability -_IMPROBABLE or less: text stays readable on it."""

_IMPROBABLE: Final = 7.0
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MONO: Final = "font-family:ui-monospace,Menlo,Consolas,monospace"


@draws(NextTokens, "html")
def next_tokens_html(tokens: NextTokens) -> str:
    """Return the bar chart. Wide gray bars are model probabilities, thin blue bars processed probabilities."""
    longest = greatest(tokens)
    head = "".join(
        f'<th style="{_CELL};font-weight:normal;text-align:{side};{_FAINT}">{name}</th>'
        for name, side in (("rank", "right"), ("token", "left"), ("model", "right"), ("", "left"), ("drawn", "left"))
    )
    rows = "".join(_row(entry, longest) for entry in tokens)
    return (
        f'<div style="font-size:13px;line-height:1.4;color:inherit">'
        f'<div style="font-weight:600;margin-bottom:4px"><bdi>{escape(heading(tokens))}</bdi></div>'
        f'<table style="border-collapse:collapse;border:none;margin:0;color:inherit">'
        f'<thead><tr style="background:transparent">{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<div style="margin-top:4px;{_FAINT}">{_swatch(_MODEL)} model {_swatch(_DRAWN)} drawn. '
        f"{escape(summary(tokens))}; {escape(processors(tokens))}</div></div>"
    )


@draws(Generation, "html")
def generation_html(generation: Generation) -> str:
    """Return the prompt, drawn fainter, and each output with a line of facts; its tokens are tinted by probability."""
    return (
        '<div style="max-width:46em;line-height:1.5;color:inherit">'
        + "".join(_completion(generation, completion) for completion in generation.completions)
        + "</div>"
    )


def _row(entry: NextToken, longest: float) -> str:
    faint = "" if entry.kept else f";{_FAINT}"
    struck = "" if entry.kept else ";text-decoration:line-through"
    return (
        '<tr style="background:transparent">'
        f'<td style="{_NUMBER};{_FAINT}">{entry.rank}</td>'
        f'<td style="{_CELL};text-align:left;{_MONO}{struck}{faint}" title="token id {entry.token_id}">'
        f"<bdi>{escape(visible(entry.text))}</bdi></td>"
        f'<td style="{_NUMBER}{faint}">{escape(percent(entry.probability))}</td>'
        f'<td style="{_CELL};width:260px">{_bars(entry, longest)}</td>'
        f'<td style="{_CELL};text-align:left;font-variant-numeric:tabular-nums{faint}">{escape(verdict(entry))}</td>'
        "</tr>"
    )


def _bars(entry: NextToken, longest: float) -> str:
    return (
        '<div style="position:relative;height:14px;width:260px">'
        + _stroke(entry.probability / longest, top=0, height=14, color=_MODEL)
        + _stroke(entry.processed_probability / longest, top=4, height=6, color=_DRAWN)
        + "</div>"
    )


def _stroke(share: float, *, top: int, height: int, color: str) -> str:
    if share <= 0.0:
        return ""
    return (
        f'<div style="position:absolute;left:0;top:{top}px;height:{height}px;width:{100 * share:.2f}%;'
        f'min-width:1px;background:{color};border-radius:1px"></div>'
    )


def _swatch(color: str) -> str:
    return f'<span style="display:inline-block;width:10px;height:10px;background:{color}"></span>'


def _completion(generation: Generation, completion: Completion) -> str:
    faint = "" if generation.echo else f' style="{_FAINT}"'
    prompt = f"<span{faint}>{escape(_readable(generation.prompt))}</span>" if generation.prompt else ""
    return (
        f'<div dir="auto" style="white-space:pre-wrap">{prompt}<span style="font-weight:600">'
        f"{_tokens(completion)}</span></div>"
        f'<div style="font-size:12px;margin-bottom:10px;{_FAINT}">{escape(closing(generation, completion))}</div>'
    )


def _tokens(completion: Completion) -> str:
    """Return the text with one span per token; as one piece if the tokens do not spell it."""
    text = completion.text
    if not "".join(completion.tokens).startswith(text):
        return escape(_readable(text))
    spans, at = [], 0
    for place, token in enumerate(completion.tokens):
        piece = text[at : at + len(token)]  # a stop string can end the text inside a token
        at += len(token)
        if piece:
            spans.append(_token(completion, place, piece))
    return "".join(spans)


def _token(completion: Completion, place: int, piece: str) -> str:
    """Return one token: the less probable it was, the stronger its background. The title has the numbers."""
    logprob = completion.logprobs[place]
    strength = _STRONGEST * min(1.0, -logprob / _IMPROBABLE)
    title = percent(math.exp(logprob))
    if completion.top_logprobs and completion.top_logprobs[place]:
        best = (f"{visible(each.text)} {percent(math.exp(each.logprob))}" for each in completion.top_logprobs[place])
        title += f"; most probable: {', '.join(best)}"
    return (
        f'<span title="{escape(title)}" style="background:rgba(230,159,0,{max(0.0, strength):.3f})">'
        f"{escape(_readable(piece))}</span>"
    )


def _readable(text: str) -> str:
    """Return a running text with escapes for the characters that control a terminal or the direction of text."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
