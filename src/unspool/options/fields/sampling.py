"""Options that shape the distribution a token is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import integer, real
from unspool.options.option import option
from unspool.options.token_kinds import tokens

_SAMPLING = "Sampling"
_NO_LIMIT = "use None for no limit"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Which tokens may be drawn, and how sharply."""

    temperature: float | None = option(
        real(0, divides=True),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Logits are divided by it: below 1 sharpens, above 1 flattens, 0 takes the best token always.",
        hint="use 1.0 or None to leave the distribution as it is",
    )
    top_k: int | None = option(
        integer(0),
        group=_SAMPLING,
        off=0,
        read_by="sampling",
        samples=True,
        drop_in_default=50,
        help="Only the k most probable tokens may be drawn; in contrastive search, the number of candidates.",
        hint="use 0 or None for no limit",
    )
    top_p: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Only the fewest most probable tokens whose probabilities add up to this may be drawn.",
        hint=_NO_LIMIT,
    )
    min_p: float | None = option(
        real(0, 1),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="Only tokens at least this fraction as probable as the most probable one may be drawn.",
        hint=_NO_LIMIT,
    )
    top_h: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        read_by="sampling",
        samples=True,
        help="Only the most probable tokens whose entropy stays within this fraction of the whole may be drawn.",
        hint=_NO_LIMIT,
    )
    typical_p: float | None = option(
        real(0, 1, brackets="(]"),
        group=_SAMPLING,
        off=1.0,
        read_by="sampling",
        samples=True,
        help="Only the tokens of most typical surprise whose probabilities add up to this may be drawn.",
        hint=_NO_LIMIT,
    )
    epsilon_cutoff: float | None = option(
        real(0, 1, brackets="[)"),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="Only tokens of at least this probability may be drawn; 3e-4 to 9e-4 is usual.",
        hint=_NO_LIMIT,
    )
    eta_cutoff: float | None = option(
        real(0, 1, brackets="[)"),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        help="As `epsilon_cutoff`, with a threshold that falls as the distribution flattens; 3e-4 to 2e-3 is usual.",
        hint=_NO_LIMIT,
    )
    top_n_sigma: float | None = option(
        real(0, brackets="(]"),
        group=_SAMPLING,
        read_by="sampling",
        samples=True,
        source="unspool",
        help="Only tokens whose logit is within this many standard deviations of the highest may be drawn.",
        hint=_NO_LIMIT,
    )
    xtc_probability: float | None = option(
        real(0, 1),
        group=_SAMPLING,
        off=0.0,
        read_by="sampling",
        samples=True,
        source="unspool",
        help="Chance, at each step, that all tokens above `xtc_threshold` but the least probable of them are cut.",
    )
    xtc_threshold: float = option(
        real(0, 1),
        group=_SAMPLING,
        default=0.1,
        read_by="sampling",
        partners=("xtc_probability",),
        source="unspool",
        help="The probability from which a token counts as a top choice for `xtc_probability`.",
    )
    xtc_exclude: tuple[int, ...] | None = option(
        tokens(),
        group=_SAMPLING,
        read_by="sampling",
        partners=("xtc_probability",),
        source="unspool",
        help="Token ids that `xtc_probability` must not cut, such as newlines: where it would, it cuts nothing.",
    )
