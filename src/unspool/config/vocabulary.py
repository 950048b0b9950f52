"""Token ids of a stored config outside the model's vocabulary.

Stored configs often contain such ids: -1 for "no token", or ids of a larger vocabulary. A model cannot generate them,
so they have no effect, as in transformers. Ids from a caller are validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unspool.config.generation import OPTIONS, GenerationConfig, build
from unspool.options.kinds import Unfit
from unspool.options.token_kinds import TokenBiases


def with_negative_ids(config: GenerationConfig, stored: GenerationConfig | None = None) -> GenerationConfig:
    """Return a stored config with its values of negative token ids moved from `extras` to the options.

    Args:
        config: a config from `GenerationConfig.from_stored`.
        stored: the model's config, if `config` is the user's; only values in both are moved then. Else None.
    """
    found: dict[str, Any] = {}
    for name, value in config.extras.items():
        read = OPTIONS[name].kind.parse_stored if name in OPTIONS else None
        if read is None or name in config.explicit:
            continue
        try:
            ids = read(value)
        except Unfit:
            continue
        if stored is None or (name in stored.explicit and getattr(stored, name) == ids):
            found[name] = ids
    if not found:
        return config
    extras = {name: value for name, value in config.extras.items() if name not in found}
    return build({name: getattr(config, name) for name in config.explicit} | found, extras=extras)


def without_unknown_ids(config: GenerationConfig, vocab_size: int) -> GenerationConfig:
    """Return a resolved config without stored token ids outside [0, vocab_size). Ids from the caller stay.

    A sequence with such an id is removed as a whole, because it can never occur. If no end-of-sequence token remains,
    `ignore_eos` becomes True.
    """
    changes: dict[str, Any] = {}
    for name in config.stored:
        value = getattr(config, name)
        if value is None or OPTIONS[name].kind.parse_stored is None:
            continue
        known = _known(value, vocab_size)
        if known != value:
            changes[name] = known or None if isinstance(value, tuple | Mapping) else known
    if "eos_token_id" in changes and changes["eos_token_id"] is None:
        changes["ignore_eos"] = True
        if "exponential_decay_length_penalty" in config.stored:
            changes["exponential_decay_length_penalty"] = None
    return config.replace(**changes) if changes else config


def _known(value: Any, vocab_size: int) -> Any:
    """Return the option's value without ids outside the vocabulary."""
    if isinstance(value, Mapping):
        return TokenBiases({ids: bias for ids, bias in value.items() if _part(ids, vocab_size) is not None})
    if isinstance(value, tuple):
        return tuple(part for each in value if (part := _part(each, vocab_size)) is not None)
    return _part(value, vocab_size)


def _part(value: Any, vocab_size: int) -> Any:
    """Return an id, text, sequence or list of alternatives without impossible parts; None if it is impossible."""
    if isinstance(value, int):
        return value if 0 <= value < vocab_size else None
    if not isinstance(value, tuple):
        return value
    if any(isinstance(each, tuple) for each in value):
        return tuple(each for each in value if _part(each, vocab_size) is not None) or None
    return value if all(each is None or _part(each, vocab_size) is not None for each in value) else None
