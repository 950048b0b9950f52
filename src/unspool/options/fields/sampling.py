"""Sampling options: temperature and truncation of the distribution."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import integer, real
from unspool.options.option import option
from unspool.options.token_kinds import tokens

_SAMPLING = "Sampling"
_NO_LIMIT = "use None for no limit"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Temperature, and the truncations that select candidate tokens."""

    temperature: float | None = option(
        real(0, divides=True),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the best token.",
        hint="use 1.0 or None to leave the distribution as it is",
    )
    top_k: int | None = option(
        integer(0),
        group=_SAMPLING,
        off=0,
        read_by="sampling",
        samples=True,
        drop_in_default=50,
        help="Keep only the k most probable tokens; in contrastive search, the number of candidates.",
        hint="use 0 or None for no limit",
    )
    top_p: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Nucleus sampling: keep the fewest most probable tokens with at least this total probability.",
        hint=_NO_LIMIT,
    )
    min_p: float | None = option(
        real(0, 1),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="Keep only tokens with at least this fraction of the highest probability.",
        hint=_NO_LIMIT,
    )
    top_h: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        read_by="sampling",
        samples=True,
        help="Keep only the most probable tokens with at most this fraction of the distribution's entropy.",
        hint=_NO_LIMIT,
    )
    typical_p: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Keep only the tokens with the most typical surprise, up to this total probability.",
        hint=_NO_LIMIT,
    )
    epsilon_cutoff: float | None = option(
        real(0, 1, brackets="[)"),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="Keep only tokens of at least this probability; 3e-4 to 9e-4 is usual.",
        hint=_NO_LIMIT,
    )
    eta_cutoff: float | None = option(
        real(0, 1, brackets="[)"),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="Like `epsilon_cutoff`, with a threshold that falls as entropy rises; 3e-4 to 2e-3 is usual.",
        hint=_NO_LIMIT,
    )
    top_n_sigma: float | None = option(
        real(0, brackets="(]"),
        group=_SAMPLING,
        read_by="sampling",
        samples=True,
        source="unspool",
        help="Keep only tokens with a logit within this many standard deviations of the highest.",
        hint=_NO_LIMIT,
    )
    xtc_probability: float | None = option(
        real(0, 1),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        source="unspool",
        help="Probability per step that XTC removes all tokens above `xtc_threshold` except the least probable one.",
    )
    xtc_threshold: float = option(
        real(0, 1),
        group=_SAMPLING,
        default=0.1,
        read_by="sampling",
        partners=("xtc_probability",),
        source="unspool",
        help="Minimum probability of a top choice, for XTC.",
    )
    xtc_exclude: tuple[int, ...] | None = option(
        tokens(),
        group=_SAMPLING,
        read_by="sampling",
        partners=("xtc_probability",),
        source="unspool",
        help="Token ids that XTC must not remove, such as newlines; if it would remove one, it removes nothing.",
    )
