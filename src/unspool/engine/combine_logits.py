"""Classifier-free guidance and DoLa: combine the logits of two prompts, or of two layers, into one row.

Runs before the logits processors. Knows neither strategies nor runtimes.
"""

from __future__ import annotations

import math

import torch

from unspool.engine.branches import RowRef
from unspool.processors.rows import FORBIDDEN
from unspool.types import ModelInfo

RELATIVE_TOP = 0.1
"""Contrast of layers: a token is plausible if its probability is at least this fraction of the best token's."""

_BASE_LOGPROB = -1e-3
_MANY_LAYERS = 40


def layers_of(named: str | tuple[int, ...], info: ModelInfo) -> tuple[int, ...]:
    """Return the layers that `dola_layers` names, ascending for "low" and "high": every second one of that half.

    In models of more than 40 layers, "low" and "high" cover the lowest or highest 20. If the head is tied to the
    embedding (layer 0), "low" starts above it, because layer 0 then predicts its own input token. Drops numbers that
    the model does not have.

    Source: transformers 4, `_dola_decoding`; Chuang et al. 2023, section 2.3.
    """
    count = info.num_layers
    assert count is not None, "checked before: the runtime returns inner layers"
    if not isinstance(named, str):
        return tuple(layer for layer in named if layer < count)
    if named == "high":
        return tuple(range(count // 2 if count <= _MANY_LAYERS else count - 20, count, 2))
    first = 0 if not info.tied_head or count < 2 else min(2, count - 1)
    last = count // 2 if count <= _MANY_LAYERS else 20
    return (first,) if first >= last else tuple(range(first, last, 2))


def dola_logits(final: torch.Tensor, inner: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Return log P(final layer) - log P(premature layer), for tokens that are plausible to the final layer.

    The premature layer is the inner layer with the largest Jensen-Shannon divergence from the final layer.

    Args:
        final: [vocab] logits. inner: [layers, vocab] logits.
        allowed: [vocab] bool, the tokens that a grammar allows: plausible is measured among them. None for all.

    Returns:
        [vocab]; implausible tokens are forbidden.

    Worked example (test_contrast_worked_example): final P = (0.6, 0.3, 0.1, 0.0), inner P = (0.2, 0.6, 0.1, 0.1) give
    ln (0.6/0.2, 0.3/0.6, 0.1/0.1) = (1.0986, -0.6931, 0.0), and the last token is implausible.

    Source: Chuang et al. 2023, DoLa, sections 2.1 to 2.3; transformers 4, `_dola_select_contrast`.
    """
    mature, early = torch.log_softmax(final, -1), torch.log_softmax(inner, -1)
    if len(early) > 1:
        middle = (mature.exp() + early.exp()) / 2  # --> [layers, vocab]
        divergence = _kl(middle, mature) + _kl(middle, early)
        early = early[int(divergence.argmax())]
    else:
        early = early[0]
    best = mature.max() if allowed is None else mature.where(allowed.to(mature.device), FORBIDDEN).max()
    implausible = mature < best + math.log(RELATIVE_TOP)
    early = early.masked_fill(implausible, _BASE_LOGPROB)
    # A token that is impossible in the inner layer must not get an infinite score.
    return mature.masked_fill(implausible, FORBIDDEN) - early.masked_fill(early == FORBIDDEN, 0.0)


def _kl(target: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(target || q) of each row. target: [layers, vocab]; log_q: [vocab] or [layers, vocab]. --> [layers]"""
    return (torch.xlogy(target, target) - target * log_q).nan_to_num(nan=0.0).sum(-1)


def cfg_logits(logits: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Return log P(negative) + scale * (log P - log P(negative)), not normalized. Arguments and result: [vocab]

    A token that is impossible after the prompt stays impossible. A token that is impossible only after the negative
    prompt keeps its log P.

    Worked example (test_guidance_worked_example): P = (0.5, 0.25, 0.25), negative P = (0.25, 0.25, 0.5), scale 2 give
    ln (1.0, 0.25, 0.125).

    Source: Sanchez et al. 2023, Stay on topic with Classifier-Free Guidance, equation 7; transformers,
    `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
    """
    wanted, unwanted = torch.log_softmax(logits, -1), torch.log_softmax(negative, -1)
    moved = scale * (wanted - unwanted) + unwanted
    return torch.where((wanted == FORBIDDEN) | (unwanted == FORBIDDEN), wanted, moved)


def combine_logits(
    main: RowRef, negative: RowRef | None, scale: float, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Return one row per position: DoLa on the prompt's own row if it has inner layers, then guidance. --> [vocab]

    allowed: as in `dola_logits`.
    """
    row = main.logits if main.inner is None else dola_logits(main.logits, main.inner, allowed)
    return row if negative is None else cfg_logits(row, negative.logits, scale)
