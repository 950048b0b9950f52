"""Pictures of one distribution: temperature, truncations, penalties."""

from __future__ import annotations

import math
from typing import Any, Final

from tools.guide.bars import LINE, Bar, bars_of, draw_bars
from tools.guide.svg import Picture
from tools.guide.tokens import shorten
from unspool.model import LanguageModel
from unspool.results.next_tokens import NextTokens

OPEN: Final = "Once upon a time there was a"
"""A prompt that many tokens can continue."""

SURE: Final = "Once upon a"
"""A prompt with one probable continuation."""

BEGUN: Final = "Once upon a time"

LOOP: Final = "The king had a horse, and the king had a"
"""A prompt with tokens that occurred before."""

_WIDTH: Final = 760
_HALF: Final = 360


def next_token(lm: LanguageModel) -> Picture:
    """The distribution of the next token."""
    found = lm.next_tokens(OPEN, limit=10)
    picture = Picture(560, 60 + 10 * LINE, title=f"The ten most probable tokens after: {OPEN}")
    picture.text(20, 26, OPEN, "token bold")
    picture.chip(20 + 7.3 * len(OPEN) + 8, 12, "?", "blue")
    bars = [Bar(each.text, each.probability, None, f"{100 * each.probability:.1f}%", "blue") for each in found]
    draw_bars(picture, bars, x=20, y=44, width=520)
    return picture


def temperature(lm: LanguageModel) -> Picture:
    """The probabilities of the best tokens at four temperatures, as curves."""
    kinds = {0.5: "blue", 1.0: "green", 1.5: "orange", 3.0: "red"}
    first = sorted(lm.next_tokens(OPEN, limit=12), key=lambda entry: entry.rank)[:12]
    curves: dict[float, list[float]] = {}
    for degree in kinds:
        found = lm.next_tokens(OPEN, **({"temperature": degree} if degree != 1.0 else {}))
        curves[degree] = [float(found.processed_probabilities[entry.token_id]) for entry in first]
    picture = Picture(_WIDTH, 300, title="Probability of the best tokens at the temperatures 0.5, 1, 1.5 and 3")
    left, right, top, bottom = 56.0, 640.0, 24.0, 226.0
    greatest = max(max(curve) for curve in curves.values())
    for share in range(math.floor(10 * greatest) + 1):
        y = bottom - (bottom - top) * share / 10 / greatest
        picture.line(left, y, right, y, "gone")
        picture.text(left - 8, y + 4, f"{10 * share}%", "small faint end")
    step = (right - left) / (len(first) - 1)
    for place, entry in enumerate(first):
        y = bottom + 18 + 14 * (place % 3)
        picture.text(left + step * place, y, shorten(entry.text, 10), "token small middle")
    for number, (degree, curve) in enumerate(curves.items()):
        points = [
            (left + step * place, bottom - (bottom - top) * share / greatest) for place, share in enumerate(curve)
        ]
        picture.polyline(points, f"{kinds[degree]} thick")
        picture.line(right + 16, 40 + 22 * number, right + 36, 40 + 22 * number, f"{kinds[degree]} thick")
        picture.text(right + 42, 44 + 22 * number, f"T = {degree:g}")
    rest = " · ".join(f"T={degree:g}: {100 * (1 - sum(curve)):.0f}%" for degree, curve in curves.items())
    picture.text(left, 290, f"all other tokens: {rest}", "small faint")
    return picture


def cuts(lm: LanguageModel) -> Picture:
    """The places at which truncations cut a flat and a peaked distribution."""
    picture = Picture(_WIDTH, 66 + 14 * LINE, title="Where top_k, top_p, min_p and top_n_sigma cut two distributions")
    truncations: dict[str, tuple[float, str]] = {
        "top_k": (5, "blue"),
        "top_p": (0.5, "purple"),
        "min_p": (0.1, "green"),
        "top_n_sigma": (2.0, "orange"),
    }
    for column, prompt in enumerate((OPEN, SURE)):
        left = 16.0 + column * (_HALF + 8)
        found = sorted(lm.next_tokens(prompt, limit=14), key=lambda entry: entry.rank)[:14]
        bars = [Bar(each.text, each.probability, None, f"{100 * each.probability:.1f}%", "gray") for each in found]
        picture.text(left, 24, prompt, "token bold")
        draw_bars(picture, bars, x=left, y=36, width=240)
        for number, (name, (value, kind)) in enumerate(truncations.items()):
            kept = lm.next_tokens(prompt, **{name: value})
            x = left + 252 + 24 * number
            end = 36 + LINE * min(kept.num_kept, 14) - 3
            picture.rect(x, 36, 12, end - 36, kind)
            if kept.num_kept > 14:
                picture.text(x + 6, end + 14, "⋮", "middle")
            picture.text(x + 6, 36 + 14 * LINE + 26, str(kept.num_kept), "small middle")
    for number, (name, (value, kind)) in enumerate(truncations.items()):
        picture.rect(16 + 120.0 * number, 66 + 14 * LINE + 12, 12, 12, kind)
        picture.text(34 + 120.0 * number, 66 + 14 * LINE + 22, f"{name}={value:g}", "token small")
    picture.height += 36
    return picture


def _kept(picture: Picture, found: NextTokens, *, x: float, title: str, limit: int, width: float = _HALF - 16) -> None:
    """Draw a panel: a heading, and the bars before and after the processors."""
    picture.text(x, 24, title, "token bold")
    draw_bars(picture, bars_of(found, limit=limit), x=x, y=36, width=width)


def typical(lm: LanguageModel) -> Picture:
    """Typical sampling and top-p on one distribution."""
    picture = Picture(_WIDTH, 54 + 10 * LINE, title="Typical sampling can cut the most probable token; top-p cannot")
    for column, options in enumerate(({"typical_p": 0.2}, {"top_p": 0.2})):
        ((name, value),) = options.items()
        found = lm.next_tokens(BEGUN, limit=4096, **options)
        _kept(picture, found, x=16 + column * (_HALF + 8), title=f"{name}={value:g}", limit=10)
    return picture


def eta(lm: LanguageModel) -> Picture:
    """The least probability that epsilon and eta sampling keep, over the entropy."""
    cutoff = 0.02
    picture = Picture(560, 250, title="Thresholds of epsilon and eta sampling over the entropy of the distribution")
    left, right, top, bottom = 60.0, 520.0, 30.0, 190.0
    greatest, deepest = 0.024, 6.0

    def at(entropy: float, threshold: float) -> tuple[float, float]:
        return left + (right - left) * entropy / deepest, bottom - (bottom - top) * threshold / greatest

    for tenth in range(3):
        picture.line(left, at(0, tenth / 100)[1], right, at(0, tenth / 100)[1], "gone")
        picture.text(left - 8, at(0, tenth / 100)[1] + 4, f"{tenth}%", "small faint end")
    for nats in range(7):
        picture.text(at(nats, 0)[0], bottom + 18, str(nats), "small faint middle")
    picture.text((left + right) / 2, bottom + 38, "entropy, in nats", "small faint middle")
    picture.polyline([at(0, cutoff), at(deepest, cutoff)], "orange thick dash")
    steps = [deepest * place / 60 for place in range(61)]
    picture.polyline([at(each, min(cutoff, math.sqrt(cutoff) * math.exp(-each))) for each in steps], "blue thick")
    picture.text(at(3.4, 0)[0], at(0, cutoff)[1] - 6, "epsilon_cutoff=0.02", "token small")
    picture.text(at(3.1, 0)[0], at(0, 0.0085)[1], "eta_cutoff=0.02", "token small")
    for prompt in (SURE, OPEN):
        probs = lm.next_tokens(prompt).probabilities
        entropy = -sum(float(each) * math.log(float(each)) for each in probs if each > 0)
        place = at(entropy, min(cutoff, math.sqrt(cutoff) * math.exp(-entropy)))
        picture.rect(place[0] - 4, place[1] - 4, 8, 8, "blue")
        words, x, y = (f"…{prompt[-11:]}", 30, -12) if prompt == OPEN else (prompt, -8, 18)
        picture.text(place[0] + x, place[1] + y, f"“{words}”", "token small end")
    return picture


def xtc(lm: LanguageModel) -> Picture:
    """Exclude top choices: the tokens that it cuts at a step where it acts."""
    picture = Picture(_WIDTH, 54 + 8 * LINE, title="XTC cuts the most probable tokens above a threshold, except one")
    plain = lm.next_tokens(OPEN, limit=20)
    cut = lm.next_tokens(OPEN, limit=4096, xtc_probability=1.0, xtc_threshold=0.05)
    _kept(picture, plain, x=16, title="the step is not drawn", limit=8)
    _kept(picture, cut, x=_HALF + 24, title="drawn, xtc_threshold=0.05", limit=8)
    return picture


def penalties(lm: LanguageModel) -> Picture:
    """Four ways to hold back tokens that occurred."""
    panels: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 2.0, "penalty_scope": "prompt_and_output"},
        {"frequency_penalty": 1.0, "penalty_scope": "prompt_and_output"},
        {"no_repeat_ngram_size": 3},
    ]
    picture = Picture(_WIDTH, 48, title="Four penalties on tokens that occurred before")
    picture.text(16, 24, LOOP, "token bold")
    for number, options in enumerate(panels):
        name, value = next(iter(options.items()))
        x, y = 16 + (number % 2) * (_HALF + 8), 52 + (number // 2) * (8 * LINE + 34)
        picture.text(x, y, f"{name}={value:g}", "token bold")
        found = lm.next_tokens(LOOP, limit=4096, **options)
        draw_bars(picture, bars_of(found, limit=8), x=x, y=y + 10, width=_HALF - 16)
    picture.height = 52 + 2 * (8 * LINE + 34)
    return picture
