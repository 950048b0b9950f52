"""Options that belong to a second model or to an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspool.options.kinds import choice, integer, real
from unspool.options.option import option
from unspool.options.token_kinds import tokens

_SPECULATION = "Speculation"
_ENCODER = "Encoder-decoder models"


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions:
    """How tokens are drafted. None of these changes the output, only the speed."""

    prompt_lookup_num_tokens: int | None = option(
        integer(1),
        group=_SPECULATION,
        read_by="named",
        help="Draft this many tokens at a time by finding the newest ones again earlier in the sequence.",
    )
    max_matching_ngram_size: int = option(
        integer(1),
        group=_SPECULATION,
        default=2,
        read_by="named",
        partners=("prompt_lookup_num_tokens",),
        help="Longest run of newest tokens, in tokens, that prompt lookup tries to find again.",
    )
    num_assistant_tokens: int = option(
        integer(1),
        group=_SPECULATION,
        default=5,
        drop_in_default=20,
        read_by="named",
        partners=("assistant_model",),
        help="Tokens that the draft model proposes at a time, at first.",
    )
    num_assistant_tokens_schedule: Literal["constant", "heuristic", "heuristic_transient"] = option(
        choice("constant", "heuristic", "heuristic_transient"),
        group=_SPECULATION,
        default="heuristic",
        drop_in_default="constant",
        read_by="named",
        partners=("assistant_model",),
        help="Whether the number of drafted tokens stays, or follows how many were accepted.",
    )
    assistant_confidence_threshold: float = option(
        real(0, 1),
        group=_SPECULATION,
        default=0.4,
        read_by="named",
        partners=("assistant_model",),
        help="A draft ends early at a token to which the draft model gives less than this probability.",
    )


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What only models with an encoder read."""

    decoder_start_token_id: tuple[int, ...] | None = option(
        tokens(),
        group=_ENCODER,
        help="The token id the decoder starts with; a list has one for each prompt.",
        hint="use None for the model's own",
    )
