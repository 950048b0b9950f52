"""Options that make what was said already less likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspool.options.kinds import choice, integer, real
from unspool.options.option import option
from unspool.options.token_kinds import breakers, tokens

_PENALTIES = "Penalties"
_ADDITIVE = ("presence_penalty", "frequency_penalty")
_SCOPED = ("repetition_penalty", *_ADDITIVE)
_DRY = ("dry_multiplier",)


@dataclass(frozen=True, kw_only=True)
class PenaltyOptions:
    """How repetition is held down."""

    repetition_penalty: float | None = option(
        real(0, brackets="(]", divides=True),
        group=_PENALTIES,
        off=1.0,
        help="Positive scores of tokens that occurred are divided by it, negative ones multiplied by it.",
        hint="use 1.0 or None to turn it off",
    )
    presence_penalty: float | None = option(
        real(),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Taken once off the score of every token that occurred; below 0 encourages.",
    )
    frequency_penalty: float | None = option(
        real(),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Taken off a token's score once for each time it occurred; below 0 encourages.",
    )
    penalty_scope: Literal["output", "prompt_and_output"] | None = option(
        choice("output", "prompt_and_output"),
        group=_PENALTIES,
        partners=_SCOPED,
        source="unspool",
        help="Where the three penalties look for tokens; unset, repetition looks at prompt and output, presence and "
        "frequency at the output.",
        hint="use None for each penalty's usual scope",
    )
    penalty_exclude: tuple[int, ...] | None = option(
        tokens(),
        group=_PENALTIES,
        partners=_SCOPED,
        source="unspool",
        help="Token ids that none of the three penalties touches.",
    )
    prompt_ignore_length: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        partners=_SCOPED,
        source="unspool",
        help="The first tokens of the prompt, this many, are not looked at by the three penalties.",
    )
    no_repeat_ngram_size: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        help="No sequence of this many tokens may occur twice, the prompt counted.",
        hint="use 0 or None to turn it off",
    )
    encoder_repetition_penalty: float | None = option(
        real(0, brackets="(]", divides=True),
        group=_PENALTIES,
        off=1.0,
        help="As `repetition_penalty`, but above 1 favors the tokens of the prompt, or of the encoder's input.",
        hint="use 1.0 or None to turn it off",
    )
    encoder_no_repeat_ngram_size: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        help="No sequence of this many tokens of the prompt, or of the encoder's input, may occur in the output.",
        hint="use 0 or None to turn it off",
    )
    dry_multiplier: float | None = option(
        real(0),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Strength of the DRY penalty on a token that would prolong a repeated sequence.",
    )
    dry_base: float = option(
        real(1),
        group=_PENALTIES,
        default=1.75,
        partners=_DRY,
        source="unspool",
        help="The DRY penalty grows by this factor with each token that the repeated sequence is longer.",
    )
    dry_allowed_length: int = option(
        integer(1),
        group=_PENALTIES,
        default=2,
        partners=_DRY,
        source="unspool",
        help="Repeated sequences shorter than this many tokens go without a DRY penalty.",
    )
    dry_sequence_breakers: tuple[str | int | tuple[int, ...], ...] = option(
        breakers(),
        group=_PENALTIES,
        default=("\n", ":", '"', "*"),
        off=(),
        partners=_DRY,
        source="unspool",
        help="Strings, token ids or token sequences that no repeated sequence reaches across.",
        hint="use None for no breakers",
    )
    dry_range: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        partners=_DRY,
        source="unspool",
        help="DRY looks at this many last tokens only.",
        hint="use 0 or None for all tokens",
    )
