"""Figures: metrics of one output, such as log-probability, perplexity, distinct-n and rep-n.

Owns: the definitions. Does not know: the figures that are shown, and the direction in which a figure is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unspool.results.score import TextScore

if TYPE_CHECKING:
    from unspool.results.generation import Completion


def distinct(tokens: Sequence[int], n: int) -> float | None:
    """Return distinct-n, the number of different n-grams over the number of n-grams, in (0, 1].

    None if there are fewer than n tokens. Longer outputs have lower values, so compare only outputs of similar length.

    Example: the tokens a b a b c have the bigrams ab ba ab bc; 3 of 4 are different, so distinct-2 is 0.75.
    Source: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models, section 5. The
    divisor is the number of n-grams instead of the number of tokens, as is usual today.
    """
    different, total = _count(tokens, n)
    return different / total if total else None


def repetition(tokens: Sequence[int], n: int) -> float | None:
    """Return rep-n, the share of repeated n-grams, in [0, 1): 1 - distinct-n. None if there are fewer than n tokens.

    Source: Su et al. 2022, A Contrastive Framework for Neural Text Generation, section 4.1, as a share instead of
    percent. It equals seq-rep-n of Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, section 6.
    """
    different, total = _count(tokens, n)
    return (total - different) / total if total else None


def diversity(tokens: Sequence[int]) -> float | None:
    """Return (1 - rep-2) * (1 - rep-3) * (1 - rep-4), in (0, 1]; None for fewer than four tokens.

    Source: Su et al. 2022, section 4.1.
    """
    if len(tokens) < 4:
        return None
    return math.prod(distinct(tokens, n) or 0.0 for n in (2, 3, 4))


def _count(tokens: Sequence[int], n: int) -> tuple[int, int]:
    """Return (number of different n-grams, number of n-grams)."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Metrics of one output, over all its tokens, including an end-of-sequence token.

    num_tokens: number of tokens. finish_reason: as in Completion.
    logprob: natural-log probability of the output under the model, before processors; at most 0.
    mean_logprob: `logprob` per token; None for an empty output.
    perplexity: exp(-mean_logprob), at least 1; infinite if a token has probability 0, None for an empty output.
    distinct_1, distinct_2, distinct_3, rep_2, rep_3, rep_4, diversity: see `distinct`, `repetition` and `diversity`;
        None if the output is too short.

    Example:
        Tokens a b a b c with the probabilities 1/2, 1/8, 1/2, 1/2, 1. The output has probability 1/64, which is
        (1/64)^(1/5) = 0.4353 per token, so the perplexity is 2.2974. 3 of 5 unigrams and 3 of 4 bigrams are different;
        all trigrams (aba bab abc) and 4-grams (abab babc) are different. So distinct-1 is 0.6, distinct-2 0.75,
        distinct-3 1; rep-2 0.25, rep-3 0, rep-4 0; diversity 0.75 * 1 * 1 = 0.75.
    """

    num_tokens: int
    logprob: float
    mean_logprob: float | None
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    rep_2: float | None
    rep_3: float | None
    rep_4: float | None
    diversity: float | None
    finish_reason: str

    @classmethod
    def of(cls, completion: Completion) -> Figures:
        """Return the figures of a completion."""
        tokens = completion.token_ids
        score = TextScore(token_ids=tokens, tokens=(), logprobs=completion.logprobs)
        return cls(
            num_tokens=len(tokens),
            logprob=completion.logprob,
            mean_logprob=completion.mean_logprob if tokens else None,
            perplexity=score.perplexity if tokens else None,
            distinct_1=distinct(tokens, 1),
            distinct_2=distinct(tokens, 2),
            distinct_3=distinct(tokens, 3),
            rep_2=repetition(tokens, 2),
            rep_3=repetition(tokens, 3),
            rep_4=repetition(tokens, 4),
            diversity=diversity(tokens),
            finish_reason=completion.finish_reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; non-finite numbers become None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
