"""Token ids outside the model's vocabulary.

Stored configs often contain such ids: -1 for "no token", or ids of a larger vocabulary. A model cannot generate them,
so they are ignored, as in transformers. Ids from a caller are validated, except at transformers' doors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from unspool.config.generation import OPTIONS, GenerationConfig, build
from unspool.errors import OptionError
from unspool.options.kinds import Unfit
from unspool.options.token_kinds import TokenBiases


def with_negative_ids(config: GenerationConfig, stored: GenerationConfig | None = None) -> GenerationConfig:
    """Return a stored config with its values of negative token ids moved from `extras` to the options.

    Args:
        config: a config from `GenerationConfig.from_stored`.
        stored: the model's config, if `config` is the user's; only values in both are moved then. Else None.
    """
    found = {
        name: ids
        for name, value in config.extras.items()
        if name not in config.explicit
        and (ids := any_ids(name, value)) is not None
        and (stored is None or (name in stored.explicit and getattr(stored, name) == ids))
    }
    return _with(config, found) if found else config


def config_with_any_ids(options: Mapping[str, Any]) -> GenerationConfig:
    """Return the config with these options of a caller. Token ids can be negative.

    Raises:
        OptionError: as in the constructor, for all other faults.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        try:
            GenerationConfig(**{name: value})
        except OptionError:
            ids = any_ids(name, value)
            if ids is None:
                raise
            found[name] = ids
    return _with(GenerationConfig(**{name: value for name, value in options.items() if name not in found}), found)


def any_ids(name: str, value: Any) -> Any:
    """Return the option's value with negative ids allowed; None if it is not a value of token ids."""
    read = OPTIONS[name].kind.parse_stored if name in OPTIONS else None
    try:
        return None if read is None else read(value)
    except Unfit:
        return None


def _with(config: GenerationConfig, found: Mapping[str, Any]) -> GenerationConfig:
    extras = {name: value for name, value in config.extras.items() if name not in found}
    return build({**{name: getattr(config, name) for name in config.explicit}, **found}, extras=extras)


def without_unknown_ids(
    config: GenerationConfig, vocab_size: int, names: Collection[str] | None = None
) -> GenerationConfig:
    """Return a resolved config without token ids outside [0, vocab_size) in these options.

    A sequence with such an id is removed as a whole, because it can never occur. If no end-of-sequence token remains,
    `ignore_eos` becomes True.

    Args:
        names: of the options; None for those with the value of the model's stored config.
    """
    changes: dict[str, Any] = {}
    for name in config.stored if names is None else names:
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
