"""Conflicts between options that are valid on their own.

Owns: the conflict checks. Each conflict is reported under a requested option; two values of a model's stored config
never raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unspool.config.strategies import readers_of
from unspool.errors import OptionError


def check_conflicts(
    values: dict[str, Any], requested: frozenset[str], strategy: str, *, ignored: list[OptionError] | None = None
) -> None:
    """Check that the final values do not conflict.

    Args:
        values: final values of all options.
        requested: names of the requested options.
        strategy: name of the chosen strategy.
        ignored: collects the errors of lengths, and the least length becomes the greatest one; None to raise.

    Raises:
        OptionError: if two values conflict and a requested option is one of them.
    """
    _check_lengths(values, requested, "min_new_tokens", "max_new_tokens", ignored)
    _check_lengths(values, requested, "min_length", "max_length", ignored)
    _check_forced(values, requested)
    if strategy in readers_of("num_beams", sampling=False):
        _check_beams(values, requested)
    if strategy in readers_of("diversity_penalty", sampling=False):
        _check_diversity(values, requested)
    if strategy in readers_of("best_of", sampling=False):
        _check_best_of(values, requested)


def _check_lengths(
    values: dict[str, Any], requested: frozenset[str], least: str, most: str, ignored: list[OptionError] | None
) -> None:
    if least not in requested or values[most] is None or values[least] <= values[most]:
        return
    allowed = f"must be at most `{most}`, which is {values[most]}"
    error = OptionError(least, values[least], allowed, f"raise `{most}` or lower `{least}`")
    if ignored is None:
        raise error
    ignored.append(error)
    values[least] = values[most]


def _check_forced(values: Mapping[str, Any], requested: frozenset[str]) -> None:
    suppressed = set(values["suppress_tokens"] or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = values[name]
        forced = {value} if isinstance(value, int) else set(value or ())
        if not forced or not forced <= suppressed:
            continue
        if name in requested:
            raise OptionError(
                name, value, "must not be fully contained in `suppress_tokens`", "remove it from one of the two"
            )
        if "suppress_tokens" in requested:
            hint = f"remove one of these ids, or change `{name}`"
            raise OptionError(
                "suppress_tokens", values["suppress_tokens"], f"must not contain all tokens of `{name}`", hint
            )


def _check_beams(values: Mapping[str, Any], requested: frozenset[str]) -> None:
    beams, groups, outputs = values["num_beams"], values["num_beam_groups"], values["num_return_sequences"]
    if beams < 2:
        named = _first_requested(requested, "force_words_ids", "force_words", "num_beams")
        raise OptionError(named, values[named], "needs `num_beams` above 1", "set `num_beams` to 2 or more")
    if outputs > beams:
        named = _first_requested(requested, "num_return_sequences", "num_beams")
        allowed = f"does not fit: `num_return_sequences` ({outputs}) must be at most `num_beams` ({beams})"
        raise OptionError(named, values[named], allowed, "raise `num_beams` or lower `num_return_sequences`")
    if beams % groups:
        named = _first_requested(requested, "num_beam_groups", "num_beams")
        allowed = f"does not fit: `num_beam_groups` ({groups}) must divide `num_beams` ({beams})"
        raise OptionError(named, values[named], allowed, "change one of the two")


def _check_diversity(values: Mapping[str, Any], requested: frozenset[str]) -> None:
    if values["diversity_penalty"] or "num_beam_groups" not in requested:
        return
    allowed = "needs `diversity_penalty` above 0; all groups would otherwise find the same outputs"
    raise OptionError("num_beam_groups", values["num_beam_groups"], allowed, "set `diversity_penalty`, such as 0.5")


def _check_best_of(values: Mapping[str, Any], requested: frozenset[str]) -> None:
    samples, outputs = values["best_of"], values["num_return_sequences"]
    if samples >= outputs:
        return
    named = _first_requested(requested, "best_of", "num_return_sequences")
    allowed = f"does not fit: `best_of` ({samples}) must be at least `num_return_sequences` ({outputs})"
    raise OptionError(named, values[named], allowed, "raise `best_of` or lower `num_return_sequences`")


def _first_requested(requested: frozenset[str], *names: str) -> str:
    """Return the first requested name; the last name if none is requested."""
    return next((name for name in names if name in requested), names[-1])
