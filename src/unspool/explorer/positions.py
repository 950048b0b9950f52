"""Distributions at one position: after a prompt, or inside an output with the processors' states of that output.

Owns the JSON form of a distribution. Does not know: routes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from unspool.model import LanguageModel
from unspool.options.fields.options import Options
from unspool.per_prompt import group_prompts
from unspool.planning import resolve_options
from unspool.protocols import Context, Conversation, Strategy
from unspool.results import NextTokens
from unspool.strategies import STRATEGIES
from unspool.text.labels import token_label
from unspool.types import ROOT, Distribution, Extend, FullDistribution, Space, Turn


class Replay(Strategy):
    """Write given tokens, then ask for the whole distribution of the next one. Returns no output.

    Args:
        tokens: of the output; can be empty.
        space: the space of the strategy that wrote them.
    """

    name = "replay"

    def __init__(self, tokens: Sequence[int], space: Space) -> None:
        self.space: Space = space
        self._tokens = tuple(tokens)

    def max_branches(self, config: Options) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns an empty list."""
        moves = (Extend(ROOT, self._tokens),) if self._tokens else ()
        yield Turn(moves=moves, asks=(FullDistribution(ROOT),))
        return []


def distribution_inside(
    lm: LanguageModel, prompt: str | list[int], tokens: Sequence[int], options: dict[str, Any]
) -> Distribution:
    """Return the distribution after the given tokens of an output.

    Raises:
        PromptError, OptionError: as `LanguageModel.generate`.
    """
    resolved, own = resolve_options(options, None, lm.config)
    space = STRATEGIES[resolved.strategy or "greedy"].space
    resolved = resolved.replace(max_new_tokens=len(tokens) + 1, max_length=None)
    (group,) = group_prompts(lm._reader.split(prompt), None, {})
    jobs = lm._plan(group, resolved, replace(own, strategy=Replay(tokens, space), assistant=None))
    (found,) = lm._distributions(jobs, False)
    return found


def distribution_json(found: Distribution, tokenizer: Any, limit: int) -> dict[str, Any]:
    """Return a distribution as plain JSON: `NextTokens.to_dict`, and the number and probability of each cut."""
    shown = NextTokens.from_distribution(found, tokenizer, limit=limit).to_dict()
    probabilities = found.logprobs.exp()
    cuts = []
    for index, name in enumerate(found.processors):
        mask = found.cut_by == index
        if count := int(mask.sum()):
            cuts.append({"processor": name, "count": count, "probability": float(probabilities[mask].sum())})
    return {**shown, "cuts": cuts, "entropy": _entropy(found.logprobs), "processed_entropy": _entropy(found.scores)}


def allowed_json(found: Distribution, tokenizer: Any, limit: int) -> dict[str, Any]:
    """Return the tokens that the grammar allows, most probable first, and their number."""
    cut = found.cut_by == found.processors.index("grammar") if "grammar" in found.processors else None
    mask = torch.ones_like(found.cut_by, dtype=torch.bool) if cut is None else ~cut
    probabilities = torch.where(mask, found.logprobs.exp(), -1.0)
    best = probabilities.argsort(descending=True, stable=True)[: min(limit, int(mask.sum()))].tolist()
    return {
        "num_allowed": int(mask.sum()),
        "allowed": [
            {"token_id": token, "text": token_label(tokenizer, token), "probability": float(probabilities[token])}
            for token in best
        ],
        "allowed_probability": float(found.logprobs.exp()[mask].sum()),
    }


def _entropy(scores: torch.Tensor) -> float:
    """Return the entropy of softmax(scores), in nats."""
    logs = scores.double().log_softmax(-1)
    return -math.fsum(torch.where(logs > -math.inf, logs.exp() * logs, 0.0).tolist())
