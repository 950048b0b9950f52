"""XTC (Exclude Top Choices): at random steps, forbids the most probable tokens in favor of a less likely one.

Owns: xtc_probability, xtc_threshold, xtc_exclude. Does not know: the output so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.noise import NoiseKey, uniform
from unspool.processors.base import Fixed
from unspool.processors.cells import Ids, cells_of, ids
from unspool.processors.rows import FORBIDDEN, column
from unspool.protocols import Context, RowKey

_DEFAULT_THRESHOLD = 0.1


class XtcState(NamedTuple):
    """probability, threshold: in [0, 1]. exclude: ids that must stay allowed. least: fewest tokens to keep."""

    probability: float
    threshold: float
    exclude: Ids
    least: int


class Xtc(Fixed[XtcState]):
    """With probability `xtc_probability`, forbid all top choices except the least probable of them.

    Top choices are the tokens with probability `xtc_threshold` or more. Tokens equal to the least top choice stay too.
    A row stays unchanged if it would lose a token of `xtc_exclude` (newline, EOS), or keep fewer than
    `min_tokens_to_keep` tokens. The draw is a function of the row's seed, prompt, output and position. Off if
    `xtc_probability` is None or 0.

    Worked example: probabilities (0.5, 0.3, 0.15, 0.05) with xtc_threshold=0.1 lose the first two. They stay unchanged
    with xtc_threshold=0.4, because a single top choice always stays, and with xtc_exclude=[1].

    Source: p-e-w, text-generation-webui pull request 6335.
    """

    name = "xtc"

    def start(self, context: Context) -> XtcState | None:
        """Return the parameters; None if it is off."""
        config = context.config
        if not config.xtc_probability:
            return None
        threshold = _DEFAULT_THRESHOLD if config.xtc_threshold is None else float(config.xtc_threshold)
        exclude = ids(config.xtc_exclude, context.info.vocab_size)
        return XtcState(float(config.xtc_probability), threshold, exclude, context.min_tokens_to_keep)

    def apply(self, states: Sequence[XtcState], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with the top choices of the drawn rows forbidden in place. scores: [rows, vocab]"""
        draws = uniform([NoiseKey(k.seed, k.prompt, k.output, k.position, self.name) for k in keys]).tolist()
        drawn = [row for row, (state, u) in enumerate(zip(states, draws, strict=True)) if u < state.probability]
        if drawn:
            rows = torch.tensor(drawn, device=scores.device)
            scores[rows] = _without_top_choices([states[row] for row in drawn], scores[rows])
        return scores


def _without_top_choices(states: Sequence[XtcState], scores: torch.Tensor) -> torch.Tensor:
    """Return the scores without top choices, changed in place. scores: [drawn rows, vocab]"""
    probs = scores.softmax(-1)
    top = (probs >= column([s.threshold for s in states], scores)) & (scores > FORBIDDEN)
    least_top = probs.where(top, 2.0).amin(-1, keepdim=True)  # 2: above any probability
    removed = top & (probs > least_top)
    left = ((scores > FORBIDDEN) & ~removed).sum(-1, keepdim=True)
    unchanged = left < column([s.least for s in states], scores, torch.int64)
    excluded = cells_of([s.exclude for s in states], scores)
    unchanged[excluded.rows[removed[excluded.rows, excluded.tokens]]] = True
    return scores.masked_fill_(removed & ~unchanged, FORBIDDEN)
