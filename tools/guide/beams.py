"""Pictures of strategies that follow several paths: the beam searches, and committed text."""

from __future__ import annotations

from typing import Any, Final

from tools.guide.svg import Picture
from tools.guide.tokens import Chip, flow
from tools.guide.trees import draw_tree
from unspool.model import LanguageModel
from unspool.results.trace import Trace

PROMPT: Final = "Once upon a time"
_STEPS: Final = 7


def _trace(lm: LanguageModel, **options: Any) -> Trace:
    trace = lm.generate(PROMPT, max_new_tokens=_STEPS, trace=True, **options).trace
    assert trace is not None, "a trace was asked for"
    return trace


def beam(lm: LanguageModel) -> Picture:
    """The tree of a beam search."""
    return draw_tree(
        _trace(lm, num_beams=3), title="Beam search with 3 beams: the best output is blue, given-up tokens are faded"
    )


def beam_sample(lm: LanguageModel) -> Picture:
    """The tree of beam sampling."""
    trace = _trace(lm, num_beams=3, temperature=0.8, seed=1)
    return draw_tree(trace, title="Beam sampling with 3 beams: continuations are drawn")


def diverse_beam(lm: LanguageModel) -> Picture:
    """The tree of a diverse beam search, with one color per output."""
    options = {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 1.0, "num_return_sequences": 3}
    trace = _trace(lm, **options)
    return draw_tree(
        trace,
        title="Diverse beam search with 3 groups: one color per group",
        figure="logprob",
        all_outputs=True,
    )


def constrained_beam(lm: LanguageModel) -> Picture:
    """The tree of a constrained beam search; the forced word is orange."""
    (dragon,) = lm.tokenizer(" dragon", add_special_tokens=False)["input_ids"]
    trace = _trace(lm, num_beams=4, force_words="dragon")
    return draw_tree(trace, title="Constrained beam search: the forced word is orange", marked=(dragon,))


def stochastic_beam(lm: LanguageModel) -> Picture:
    """The tree of a stochastic beam search, with one color per output."""
    trace = _trace(lm, strategy="stochastic_beam", num_beams=4, num_return_sequences=4, temperature=0.7, seed=1)
    return draw_tree(trace, title="Stochastic beam search: 4 different samples", figure="logprob", all_outputs=True)


def streaming(lm: LanguageModel) -> Picture:
    """Committed and tentative text, step by step."""
    width = 760
    picture = Picture(width, title="Streamed beam search: committed tokens are green, tentative ones are dashed")
    committed: list[str] = []
    tail: list[str] = []
    y = 14.0
    stream = lm.stream(PROMPT, num_beams=4, max_new_tokens=9, tentative=True)
    for number, chunk in enumerate(stream, 1):
        committed += _words(chunk.text)
        tail = tail if chunk.tentative is None else _words(chunk.tentative)
        picture.text(16, y + 14, str(number), "small faint")
        chips = [Chip(each, "green") for each in committed] + [Chip(each, "none hollow") for each in tail]
        y = flow(picture, chips, x=40, y=y, right=width - 10)
    picture.height = y + 6
    return picture


def _words(text: str) -> list[str]:
    """Return a text in words with the space before them."""
    return [f" {word}" for word in text.split(" ") if word]
