"""Options that force, forbid or favor given tokens, and special tokens."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import flag
from unspool.options.option import option
from unspool.options.token_kinds import TokenBiases, biases, decay, sequences, token, tokens

_TOKENS = "Constraints on tokens"
_SPECIAL = "Special tokens"


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """Tokens that are forced, forbidden or favored."""

    bad_words_ids: tuple[tuple[int, ...], ...] | None = option(
        sequences(), group=_TOKENS, help="Token sequences that must not occur in the output."
    )
    sequence_bias: TokenBiases | None = option(
        biases(),
        group=_TOKENS,
        help="Number per token sequence, added to the score of a token that completes the sequence.",
        hint="use `bad_words_ids` to forbid a sequence, None to turn it off",
    )
    suppress_tokens: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids that must not occur in the output."
    )
    begin_suppress_tokens: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids that must not be first in the output."
    )
    forced_bos_token_id: int | None = option(
        token(), group=_TOKENS, help="Token id that must follow a one-token prompt."
    )
    forced_eos_token_id: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids; one of them must be last if the length limit ends the output."
    )
    remove_invalid_values: bool = option(
        flag(),
        group=_TOKENS,
        default=False,
        help="Replace NaN scores by 0 and infinite scores by the greatest and least number, instead of an error.",
    )
    exponential_decay_length_penalty: tuple[int, float] | None = option(
        decay(),
        group=_TOKENS,
        help="(start, factor): after `start` generated tokens, the end-of-sequence score grows by `factor` per token.",
    )
    renormalize_logits: bool = option(
        flag(),
        group=_TOKENS,
        default=False,
        help="Normalize the scores to log-probabilities after all other processors.",
    )


@dataclass(frozen=True, kw_only=True)
class SpecialTokenOptions:
    """Special tokens of the request, in place of the model's."""

    eos_token_id: tuple[int, ...] | None = option(
        tokens(),
        group=_SPECIAL,
        help="Token ids that end an output; if unset, the model's own.",
        hint="use None for no end-of-sequence token",
    )
    bos_token_id: int | None = option(
        token(), group=_SPECIAL, help="Token id that replaces an empty prompt; if unset, the model's own."
    )
    pad_token_id: int | None = option(
        token(),
        group=_SPECIAL,
        help="Token id that pads the tensors of the drop-in; generation itself needs no padding.",
    )
