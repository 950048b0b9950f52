"""The objects of transformers in a call: those that replace our own processors and criteria, and those that are added.

Owns: transformers' rules on replacement. Does not know: how the objects are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError
from unspool.interop.criteria import REPLACED, sort_criteria
from unspool.interop.processors import DEFAULTS, GUIDANCE, LAST, PREFIX, USER, WARPERS


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersObjects:
    """Objects of transformers.

    processors: place in the chain --> objects; objects at the place of an option replace our own processor. criteria:
    those without an option. prefix_allowed_tokens_fn: None for none.
    """

    processors: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    criteria: tuple[Any, ...] = ()
    prefix_allowed_tokens_fn: Callable[..., Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.processors or self.criteria or self.prefix_allowed_tokens_fn)

    @property
    def see_batch(self) -> bool:
        """True if an object sees the whole batch, so that all rows must advance in lockstep."""
        return bool(self.processors or self.criteria)


def callables(option: str, given: Any) -> tuple[Any, ...]:
    """Return a list of processors or criteria as a tuple.

    Raises:
        OptionError: if it is not a list, or holds an object that cannot be called.
    """
    if given is None:
        return ()
    kind = "LogitsProcessor" if option == "logits_processor" else "StoppingCriteria"
    if not isinstance(given, list | tuple):
        allowed = f"must be a list of {kind} objects"
        raise OptionError(option, type(given).__name__, allowed, f"put it into one: {option}=[...]")
    for each in given:
        if not callable(each):
            ours = "processors" if option == "logits_processor" else "criteria"
            hint = f"give objects of unspool.protocols as `{ours}`"
            raise OptionError(option, type(each).__name__, "must hold objects that can be called", hint)
    return tuple(given)


def placed(given: Sequence[Any], config: GenerationConfig, *, prefix: bool) -> dict[str, tuple[Any, ...]]:
    """Return the caller's processors by place. The first of a class takes the place of its option, if that is on.

    config: resolved, lengths still as given. prefix: whether the call has a `prefix_allowed_tokens_fn`.
    """
    places: dict[str, tuple[Any, ...]] = {}
    for each in given:
        default = DEFAULTS.get(type(each))
        replaces = default is not None and default.yields and default.option not in places
        place = default.option if default and replaces and _is_on(default.option, config, prefix=prefix) else USER
        places[place] = (*places.get(place, ()), each)
    return places


def prepared(given: Sequence[Any], config: GenerationConfig) -> dict[str, tuple[Any, ...]]:
    """Return by place the processors in transformers' prepared list that the caller gave."""
    places: dict[str, tuple[Any, ...]] = {}
    newest = {type(each): index for index, each in enumerate(given)}
    behind = USER
    for index, each in enumerate(given):
        kind, place = type(each), behind
        if kind in DEFAULTS and _is_on(DEFAULTS[kind].option, config, prefix=True):
            place, attribute = DEFAULTS[kind].option, DEFAULTS[kind].attribute
            known = attribute is None or getattr(each, attribute, None) == getattr(config, place)
            if known and place != PREFIX:
                continue
        elif kind in WARPERS and newest[kind] == index and _is_on(WARPERS[kind], config, prefix=False):
            behind = LAST
            continue
        places[place] = (*places.get(place, ()), each)
    return places


def _is_on(option: str, config: GenerationConfig, *, prefix: bool) -> bool:
    return prefix if option == PREFIX else not OPTIONS[option].is_off(getattr(config, option))


def without_replaced(config: GenerationConfig, processors: Mapping[str, Any]) -> GenerationConfig:
    """Return the options without those that an object replaces and that are not processors of ours."""
    gone = [name for name in (GUIDANCE, "min_length") if name in processors]
    return config.replace(**dict.fromkeys(gone)) if gone else config


def with_criteria(
    config: GenerationConfig, given: Sequence[Any], width: int
) -> tuple[GenerationConfig, tuple[Any, ...]]:
    """Return the options with the lengths and ends of the criteria, and the other criteria.

    width: of the batch, which `max_length` counts.
    """
    ends = sort_criteria(given)
    changes: dict[str, Any] = {REPLACED[type(each)]: None for each in ends.others if type(each) in REPLACED}
    if ends.max_length is not None:
        # transformers asks its criteria after a token, so at least one token is written.
        changes |= {"max_new_tokens": max(1, ends.max_length - width), "max_length": None}
    if ends.eos_token_id is not None:
        changes |= {"eos_token_id": ends.eos_token_id, "ignore_eos": False}
    return (config.replace(**changes) if changes else config), ends.others
