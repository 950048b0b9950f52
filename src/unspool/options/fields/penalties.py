"""Penalties on repetition."""

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
    """Repetition penalties, n-gram bans and DRY."""

    repetition_penalty: float | None = option(
        real(0, brackets="(]", divides=True),
        group=_PENALTIES,
        off=1.0,
        help="Divides positive scores of tokens that occurred, and multiplies negative ones; above 1 discourages them.",
        hint="use 1.0 or None to turn it off",
    )
    presence_penalty: float | None = option(
        real(),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Subtracted once from the score of every token that occurred; below 0 encourages it.",
    )
    frequency_penalty: float | None = option(
        real(),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Subtracted from a token's score for each time that it occurred; below 0 encourages it.",
    )
    penalty_scope: Literal["output", "prompt_and_output"] | None = option(
        choice("output", "prompt_and_output"),
        group=_PENALTIES,
        partners=_SCOPED,
        source="unspool",
        help="Text in which the three penalties count tokens. If unset, the repetition penalty counts prompt and "
        "output, the presence and frequency penalties the output.",
        hint="use None for each penalty's usual scope",
    )
    penalty_exclude: tuple[int, ...] | None = option(
        tokens(),
        group=_PENALTIES,
        partners=_SCOPED,
        source="unspool",
        help="Token ids that are exempt from the three penalties.",
    )
    prompt_ignore_length: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        partners=_SCOPED,
        source="unspool",
        help="Number of first prompt tokens that the three penalties ignore.",
    )
    no_repeat_ngram_size: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        help="Forbids n-grams of this many tokens that prompt or output already contain.",
        hint="use 0 or None to turn it off",
    )
    encoder_repetition_penalty: float | None = option(
        real(0, brackets="(]", divides=True),
        group=_PENALTIES,
        off=1.0,
        help="Like `repetition_penalty`, but above 1 favors the tokens of the prompt, or of the encoder's input.",
        hint="use 1.0 or None to turn it off",
    )
    encoder_no_repeat_ngram_size: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        help="Forbids in the output any n-gram of this many tokens of the prompt, or of the encoder's input.",
        hint="use 0 or None to turn it off",
    )
    dry_multiplier: float | None = option(
        real(0),
        group=_PENALTIES,
        off=0.0,
        source="unspool",
        help="Strength of the DRY penalty on a token that would extend a repeated sequence.",
    )
    dry_base: float = option(
        real(1),
        group=_PENALTIES,
        default=1.75,
        partners=_DRY,
        source="unspool",
        help="The DRY penalty grows by this factor per additional token of the repeated sequence.",
    )
    dry_allowed_length: int = option(
        integer(1),
        group=_PENALTIES,
        default=2,
        partners=_DRY,
        source="unspool",
        help="Repeated sequences shorter than this many tokens get no DRY penalty.",
    )
    dry_sequence_breakers: tuple[str | int | tuple[int, ...], ...] = option(
        breakers(),
        group=_PENALTIES,
        default=("\n", ":", '"', "*"),
        off=(),
        partners=_DRY,
        source="unspool",
        help="Strings, token ids or token sequences that a repeated sequence cannot cross.",
        hint="use None for no breakers",
    )
    dry_range: int | None = option(
        integer(0),
        group=_PENALTIES,
        off=0,
        partners=_DRY,
        source="unspool",
        help="Number of last tokens that DRY searches for repetition.",
        hint="use 0 or None for all tokens",
    )
