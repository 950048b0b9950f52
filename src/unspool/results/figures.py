"""What an output looks like in figures: how probable the model finds it, and how much it repeats itself.

Owns: the definitions. Does not know: which figures are shown, or which value is the better one.
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
    """Return the share of n-grams that are different ones, in (0, 1]; None where there is no n-gram.

    Of the tokens a b a b c, the bigrams are ab ba ab bc: 3 different ones of 4, so distinct-2 is 0.75. Longer outputs
    have lower values; only outputs of like length compare.
    Source: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models, section 5, with
    the number of n-grams as divisor, as is usual since, in place of the number of tokens.
    """
    different, total = _count(tokens, n)
    return different / total if total else None


def repetition(tokens: Sequence[int], n: int) -> float | None:
    """Return rep-n, the share of n-grams that have been there before: 1 - distinct-n; None where there is no n-gram.

    Source: Su et al. 2022, A Contrastive Framework for Neural Text Generation, section 4.1, as a share, not in percent;
    the measure is seq-rep-n of Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, section 6.
    """
    different, total = _count(tokens, n)
    return (total - different) / total if total else None


def diversity(tokens: Sequence[int]) -> float | None:
    """Return (1 - rep-2) * (1 - rep-3) * (1 - rep-4), in (0, 1]; None below four tokens.

    Source: Su et al. 2022, section 4.1.
    """
    if len(tokens) < 4:
        return None
    return math.prod(distinct(tokens, n) or 0.0 for n in (2, 3, 4))


def _count(tokens: Sequence[int], n: int) -> tuple[int, int]:
    """Return how many different n-grams there are, and how many in all."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one output, over all its tokens, an end-of-sequence token included.

    num_tokens: how many. finish_reason: why it ended, as in Completion.
    logprob: natural-log probability of the whole output under the model, before any processor; at most 0.
    mean_logprob: a token's share of it. perplexity: exp(-mean_logprob), at least 1, infinite where the model rules a
        token out. Both None of an empty output.
    distinct_1, distinct_2, distinct_3, rep_2, rep_3, rep_4, diversity: see `distinct`, `repetition` and `diversity`;
        None where the output is too short.

    Example:
        Tokens a b a b c with the probabilities 1/2, 1/8, 1/2, 1/2, 1: the whole has 1/64, a token
        (1/64)^(1/5) = 0.4353, so the perplexity is 2.2974. The unigrams are 3 different ones of 5, the bigrams 3 of 4,
        the trigrams (aba bab abc) and the 4-grams (abab babc) all different: distinct-1 0.6, distinct-2 0.75,
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
        """Return the figures of an output."""
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
        """Return the fields by name; a number that is not finite becomes None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
