"""Options on how long an output gets and what ends it."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import flag, integer, real, texts
from unspool.options.option import option

_LENGTH = "Length"
_STOPPING = "Stopping"


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How long an output gets."""

    max_new_tokens: int | None = option(
        integer(1),
        group=_LENGTH,
        fallback=256,
        help="Most tokens to generate, the prompt not counted. The default, 256 (20 in the drop-in), holds unless "
        "another option limits the length.",
        hint="use None for no limit but the model's own",
    )
    max_length: int | None = option(
        integer(1),
        group=_LENGTH,
        help="Most tokens in a sequence, the prompt counted; `max_new_tokens` is the plainer choice.",
        hint="use None for no limit but the model's own",
    )
    min_new_tokens: int | None = option(
        integer(0),
        group=_LENGTH,
        off=0,
        help="End-of-sequence tokens are forbidden until this many tokens are generated.",
    )
    min_length: int | None = option(
        integer(0),
        group=_LENGTH,
        off=0,
        help="End-of-sequence tokens are forbidden until a sequence has this many tokens, the prompt counted.",
    )


@dataclass(frozen=True, kw_only=True)
class StoppingOptions:
    """What ends an output."""

    stop_strings: tuple[str, ...] | None = option(
        texts(),
        group=_STOPPING,
        help="Strings that end an output as soon as its text, special tokens included, holds one of them.",
    )
    max_time: float | None = option(
        real(0, brackets="(]"),
        group=_STOPPING,
        help="Most seconds a request may run, counted from its start; the step under way is finished.",
        hint="use None for no limit",
    )
    ignore_eos: bool = option(
        flag(),
        group=_STOPPING,
        default=False,
        source="unspool",
        help="Go on after an end-of-sequence token.",
    )
