"""Pictures of the common misconceptions: small examples by hand, and the keys of the noise."""

from __future__ import annotations

from typing import Final

import torch

from tools.guide.svg import Picture
from unspool import functional
from unspool.model import LanguageModel

_WIDTH: Final = 760


def top_p_boundary(lm: LanguageModel) -> Picture:
    """Top-p keeps the token that crosses the limit."""
    probabilities, top_p = (0.5, 0.2, 0.15, 0.1, 0.05), 0.8
    kept = functional.top_p(torch.tensor(probabilities).log(), top_p).isfinite().tolist()
    picture = Picture(620, 150, title="Top-p 0.8 on five tokens: the token that crosses 0.8 stays")
    left, room, at = 24.0, 572.0, 0.0
    for name, share, stays in zip("ABCDE", probabilities, kept, strict=True):
        kind = "red hollow" if not stays else "orange" if at + share > top_p else "blue"
        picture.rect(left + room * at, 46, room * share - 3, 34, kind)
        picture.text(left + room * (at + share / 2) - 1, 67, name, "token bold middle")
        picture.text(left + room * (at + share / 2) - 1, 98, f"{share:g}", "small faint middle")
        picture.text(left + room * at, 118, f"{at:.2f}", "small middle" if at else "small")
        at += share
    x = left + room * top_p
    picture.line(x, 30, x, 88, "thick dash")
    picture.text(x, 22, f"top_p = {top_p}", "token small middle")
    picture.text(left, 138, "below each border: the mass before the token", "small faint")
    return picture


def repetition_penalty(lm: LanguageModel) -> Picture:
    """A penalty by division alone makes a token with a negative logit likelier."""
    penalty = 2.0
    picture = Picture(620, 170, title="A repetition penalty of 2 on the logits 3 and -1: division, and the right rule")
    left, right, least, greatest = 150.0, 590.0, -3.0, 4.0

    def at(value: float) -> float:
        return left + (right - left) * (value - least) / (greatest - least)

    for line, (words, wrong) in enumerate({"divide always": True, "divide or multiply": False}.items()):
        y = 44.0 + 62 * line
        picture.text(16, y + 4, words, "bold" if not wrong else "")
        picture.line(left, y, right, y)
        for value in (3.0, -1.0):
            new = value / penalty
            if not wrong:
                new = float(functional.repetition_penalty(torch.tensor([value]), [0], penalty)[0])
            up = new > value
            picture.rect(at(value) - 4, y - 4, 8, 8, "gray")
            picture.rect(at(new) - 5, y - 5, 10, 10, "red" if up else "green")
            picture.text(at(value), y - 12, f"{value:g}", "small faint middle")
            picture.text(at(new), y + 22, f"{new:g} {'↑ likelier' if up else '↓'}", "small middle")
    for value in range(-3, 5):
        picture.text(at(value), 160, str(value), "small faint middle")
    return picture


def seeds(lm: LanguageModel) -> Picture:
    """One generator for a batch, and noise by key."""
    picture = Picture(_WIDTH, 236, title="One generator for all rows, and noise by key")
    picture.text(16, 26, "one generator, in order of use (orange: another number than alone)", "bold")
    picture.text(16, 146, "noise by key: (seed, prompt, output, position, token)", "bold")
    alone = [("A", step) for step in range(1, 7)]
    together = [(row, step) for step in range(1, 4) for row in "AB"]
    for line, (words, order) in enumerate((("A alone", alone), ("A and B", together))):
        y = 40.0 + 40 * line
        picture.text(16, y + 14, words, "small")
        for place, (row, step) in enumerate(order):
            kind = "blue" if row == "A" else "gray"
            moved = line == 1 and row == "A" and step > 1
            picture.chip(96 + 104.0 * place, y, f"{row}{step} ← u{place + 1}", "orange" if moved else kind)
    for line, (words, rows) in enumerate((("A alone", "A"), ("A and B", "AB"))):
        y = 160.0 + 40 * line
        picture.text(16, y + 14, words, "small")
        for place in range(6):
            row, step = (rows[place % len(rows)], place // len(rows) + 1)
            picture.chip(96 + 104.0 * place, y, f"{row}{step} ← {row.lower()}{step}", "blue" if row == "A" else "gray")
    return picture
