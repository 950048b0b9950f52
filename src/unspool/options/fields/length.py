"""Options for output length and stopping."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import flag, integer, real, texts
from unspool.options.option import option

_LENGTH = "Length"
_STOPPING = "Stopping"


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """Length limits of an output."""

    max_new_tokens: int | None = option(
        integer(1),
        group=_LENGTH,
        fallback=256,
        help="Maximum number of tokens to generate, without the prompt. The default is 256 (20 in `unspool.generate`), "
        "unless another option limits the length.",
        hint="use None for the model's own limit",
    )
    max_length: int | None = option(
        integer(1),
        group=_LENGTH,
        help="Maximum number of tokens in a sequence, with the prompt; prefer `max_new_tokens`.",
        hint="use None for the model's own limit",
    )
    min_new_tokens: int | None = option(
        integer(0),
        group=_LENGTH,
        off=0,
        help="Minimum number of tokens to generate; end-of-sequence tokens are forbidden before.",
    )
    min_length: int | None = option(
        integer(0),
        group=_LENGTH,
        off=0,
        help="Minimum number of tokens in a sequence, with the prompt; end-of-sequence tokens are forbidden before.",
    )


@dataclass(frozen=True, kw_only=True)
class StoppingOptions:
    """Stopping criteria of an output."""

    stop_strings: tuple[str, ...] | None = option(
        texts(),
        group=_STOPPING,
        help="Strings that end an output as soon as its text contains one of them; special tokens count as text.",
    )
    max_time: float | None = option(
        real(0, brackets="(]"),
        group=_STOPPING,
        help="Time limit in seconds, from the start of the request; the current step is finished.",
        hint="use None for no limit",
    )
    ignore_eos: bool = option(
        flag(),
        group=_STOPPING,
        default=False,
        source="unspool",
        help="Continue after an end-of-sequence token.",
    )
