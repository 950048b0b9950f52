"""TextScore: the log-probability of a given text under a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unspool.results.json_text import JsonText


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TextScore(JsonText):
    """Log-probabilities of the tokens of a continuation, given a prompt.

    token_ids: tokens of the continuation.
    tokens: their texts, which join to the continuation. Empty without a tokenizer.
    logprobs: natural-log probability of each token under the model, given the prompt and the tokens before.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Natural-log probability of the continuation: the sum of `logprobs`; 0.0 for an empty continuation."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """Mean log-probability per token; NaN for an empty continuation."""
        return self.total / len(self.logprobs) if self.logprobs else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean), at least 1; infinite if a token has probability 0."""
        try:
            return math.exp(-self.mean)
        except OverflowError:
            return math.inf

    def __repr__(self) -> str:
        return f"<TextScore: {self}>"

    def __str__(self) -> str:
        if not self.logprobs:
            return "empty continuation: log-probability 0"
        count = len(self.logprobs)
        tokens = "1 token" if count == 1 else f"{count} tokens"
        return f"{tokens}: log-probability {self.total:.4f}, mean {self.mean:.4f}, perplexity {self.perplexity:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; non-finite numbers become None."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "logprobs": [number(value) for value in self.logprobs],
            "total": number(self.total),
            "mean": number(self.mean),
            "perplexity": number(self.perplexity),
        }
