"""How probable a model finds a given text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unspool.results.json_text import JsonText


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TextScore(JsonText):
    """Log-probabilities of a continuation after a prompt, token by token.

    token_ids: of the continuation. tokens: their texts; joined, the continuation. Empty without a tokenizer.
    logprobs: the model's own natural-log probability of each token, given the prompt and the tokens before it.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Natural-log probability of the whole continuation: the sum; 0.0 of an empty one."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """Mean log-probability of a token; NaN of an empty continuation."""
        return self.total / len(self.logprobs) if self.logprobs else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean), at least 1; infinite where a token is impossible."""
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
        """Return plain values that JSON can hold; a number that is not finite becomes None."""

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
