"""Options that force, forbid or favor named tokens."""

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
        help="Token sequences with a number each, which is added to the score of a token that completes the sequence.",
        hint="use `bad_words_ids` to forbid a sequence, None to turn it off",
    )
    suppress_tokens: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids that must not occur in the output."
    )
    begin_suppress_tokens: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids that must not come first in the output."
    )
    forced_bos_token_id: int | None = option(
        token(), group=_TOKENS, help="The token id that must follow a one-token prompt."
    )
    forced_eos_token_id: tuple[int, ...] | None = option(
        tokens(), group=_TOKENS, help="Token ids one of which must come last where the length limit ends the output."
    )
    exponential_decay_length_penalty: tuple[int, float] | None = option(
        decay(),
        group=_TOKENS,
        help="(start, factor): after `start` generated tokens the end-of-sequence score grows by this factor a token.",
    )
    renormalize_logits: bool = option(
        flag(),
        group=_TOKENS,
        default=False,
        help="Turn the scores into log-probabilities again after all other processors.",
    )


@dataclass(frozen=True, kw_only=True)
class SpecialTokenOptions:
    """The request's own special tokens, where they differ from the model's."""

    eos_token_id: tuple[int, ...] | None = option(
        tokens(),
        group=_SPECIAL,
        help="Token ids that end an output; unset, the model's own.",
        hint="use None for no end-of-sequence token",
    )
    bos_token_id: int | None = option(
        token(), group=_SPECIAL, help="The token id that stands in for an empty prompt; unset, the model's own."
    )
    pad_token_id: int | None = option(
        token(),
        group=_SPECIAL,
        help="The token id that fills up the tensors of the drop-in; nothing is padded while generating.",
    )
