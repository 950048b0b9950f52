"""What a branch's sequences and layers say together: contrast between layers, and guidance away from another prompt.

Owns the two ways to combine rows of logits before any processor sees them. Knows no strategy and no runtime.
"""

from __future__ import annotations

import math

import torch

from unspool.engine.branches import RowRef
from unspool.processors.rows import FORBIDDEN
from unspool.types import ModelInfo

RELATIVE_TOP = 0.1
"""A token takes part in a contrast of layers where its probability is at least this share of the best one's."""

_BASE_LOGPROB = -1e-3
_MANY_LAYERS = 40


def layers_of(named: str | tuple[int, ...], info: ModelInfo) -> tuple[int, ...]:
    """Return the numbers of the layers that `dola_layers` names: every second one of the lower or the upper half.

    Only the lowest or highest 20 are meant where there are more than 40. Where the embedding (layer 0) is the head
    itself, "low" starts above it, since layer 0 then says the token it stands for. Numbers beyond the model's are left
    out.

    Source: transformers 4, `_dola_decoding`; Chuang et al. 2023, section 2.3.
    """
    count = info.num_layers
    assert count is not None, "checked before: the runtime can look inside"
    if not isinstance(named, str):
        return tuple(layer for layer in named if layer < count)
    if named == "high":
        return tuple(range(count // 2 if count <= _MANY_LAYERS else count - 20, count, 2))
    first = 0 if not info.tied_head or count < 2 else min(2, count - 1)
    last = count // 2 if count <= _MANY_LAYERS else 20
    return (first,) if first >= last else tuple(range(first, last, 2))


def dola_logits(final: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Return log P(final layer) - log P(the inner layer that differs most), for tokens plausible to the final layer.

    Which differs most is told by the Jensen-Shannon divergence. Where one layer is given, it is that one.

    Args:
        final: [vocab] logits. inner: [layers, vocab] logits.

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
    implausible = mature < mature.max() + math.log(RELATIVE_TOP)
    early = early.masked_fill(implausible, _BASE_LOGPROB)
    # What the inner layer holds impossible is not infinitely better for it.
    return mature.masked_fill(implausible, FORBIDDEN) - early.masked_fill(early == FORBIDDEN, 0.0)


def _kl(target: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(target || q) of each row. target: [layers, vocab]; log_q: [vocab] or [layers, vocab]. --> [layers]"""
    return (torch.xlogy(target, target) - target * log_q).nan_to_num(nan=0.0).sum(-1)


def cfg_logits(logits: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Return log P(negative) + scale * (log P - log P(negative)), which is not normalized. Each: [vocab]

    A token that is impossible behind the prompt stays so; one that is impossible behind the negative prompt alone keeps
    its log P.

    Worked example (test_guidance_worked_example): P = (0.5, 0.25, 0.25), negative P = (0.25, 0.25, 0.5), scale 2 give
    ln (1.0, 0.25, 0.125).

    Source: Sanchez et al. 2023, Stay on topic with Classifier-Free Guidance, equation 7; transformers,
    `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
    """
    wanted, unwanted = torch.log_softmax(logits, -1), torch.log_softmax(negative, -1)
    moved = scale * (wanted - unwanted) + unwanted
    return torch.where((wanted == FORBIDDEN) | (unwanted == FORBIDDEN), wanted, moved)


def combine_logits(main: RowRef, negative: RowRef | None, scale: float) -> torch.Tensor:
    """Return what one position's rows say together: layers first, within the prompt's own row. --> [vocab]"""
    row = main.logits if main.inner is None else dola_logits(main.logits, main.inner)
    return row if negative is None else cfg_logits(row, negative.logits, scale)
