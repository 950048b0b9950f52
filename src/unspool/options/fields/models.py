"""Options for speculative decoding and for encoder-decoder models."""

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
    """Speculative decoding (assisted generation). These options change the speed, never the output."""

    prompt_lookup_num_tokens: int | None = option(
        integer(1),
        group=_SPECULATION,
        read_by="named",
        help="Prompt lookup: draft this many tokens at a time, copied from an earlier match of the newest tokens.",
    )
    max_matching_ngram_size: int = option(
        integer(1),
        group=_SPECULATION,
        default=2,
        read_by="named",
        partners=("prompt_lookup_num_tokens",),
        help="Longest n-gram of newest tokens that prompt lookup searches for, in tokens.",
    )
    num_assistant_tokens: int = option(
        integer(1),
        group=_SPECULATION,
        default=5,
        drop_in_default=20,
        read_by="named",
        partners=("assistant_model",),
        help="Number of tokens that the draft model proposes at first.",
    )
    num_assistant_tokens_schedule: Literal["constant", "heuristic", "heuristic_transient"] = option(
        choice("constant", "heuristic", "heuristic_transient"),
        group=_SPECULATION,
        default="heuristic",
        drop_in_default="constant",
        read_by="named",
        partners=("assistant_model",),
        help="Keep the number of drafted tokens constant, or adapt it to the number accepted.",
    )
    assistant_confidence_threshold: float = option(
        real(0, 1),
        group=_SPECULATION,
        default=0.4,
        read_by="named",
        partners=("assistant_model",),
        help="A draft ends early if the draft model gives its next token a lower probability than this.",
    )


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Options of encoder-decoder models."""

    decoder_start_token_id: tuple[int, ...] | None = option(
        tokens(),
        group=_ENCODER,
        help="Token id that the decoder starts with; a list has one per prompt.",
        hint="use None for the model's own token",
    )
