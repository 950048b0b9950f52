"""Options that are fine one by one and contradict each other together.

Owns: the contradictions. Each is reported under an option that was asked for; two values of a model's stored config
are never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unspool.config.strategies import BEAMS
from unspool.errors import OptionError


def check_conflicts(values: Mapping[str, Any], asked: frozenset[str], strategy: str) -> None:
    """Raise an OptionError where two final values cannot both be honoured.

    Args:
        values: every option, final.
        asked: the options asked for.
        strategy: the strategy chosen.
    """
    _check_lengths(values, asked, "min_new_tokens", "max_new_tokens")
    _check_lengths(values, asked, "min_length", "max_length")
    _check_forced(values, asked)
    if strategy in BEAMS:
        _check_beams(values, asked)


def _check_lengths(values: Mapping[str, Any], asked: frozenset[str], least: str, most: str) -> None:
    if least not in asked or values[most] is None or values[least] <= values[most]:
        return
    allowed = f"must be at most `{most}`, which is {values[most]}"
    raise OptionError(least, values[least], allowed, f"raise `{most}` or lower `{least}`")


def _check_forced(values: Mapping[str, Any], asked: frozenset[str]) -> None:
    suppressed = set(values["suppress_tokens"] or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = values[name]
        forced = {value} if isinstance(value, int) else set(value or ())
        if not forced or not forced <= suppressed:
            continue
        if name in asked:
            raise OptionError(name, value, "must not be in `suppress_tokens` as a whole", "take it out of one of them")
        if "suppress_tokens" in asked:
            hint = f"take it out, or set {name}=None"
            raise OptionError("suppress_tokens", values["suppress_tokens"], f"must leave a token of `{name}`", hint)


def _check_beams(values: Mapping[str, Any], asked: frozenset[str]) -> None:
    beams, groups, outputs = values["num_beams"], values["num_beam_groups"], values["num_return_sequences"]
    if beams < 2:
        named = "force_words_ids" if "force_words_ids" in asked else "num_beams"
        raise OptionError(named, values[named], "needs `num_beams` above 1", "set num_beams=2 or more")
    if outputs > beams:
        named = "num_return_sequences" if "num_return_sequences" in asked else "num_beams"
        allowed = f"does not fit: num_return_sequences ({outputs}) must be at most num_beams ({beams})"
        raise OptionError(named, values[named], allowed, "raise `num_beams` or lower `num_return_sequences`")
    if beams % groups:
        named = "num_beam_groups" if "num_beam_groups" in asked else "num_beams"
        allowed = f"does not fit: num_beam_groups ({groups}) must divide num_beams ({beams})"
        raise OptionError(named, values[named], allowed, "change one of the two")
