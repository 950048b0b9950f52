"""Options per prompt: which prompts of a call share their options, and which have options of their own.

Owns: reading a list as one value per prompt. Does not know: how options resolve, or how prompts are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError
from unspool.inputs.prompts import Prompts

Configs: TypeAlias = GenerationConfig | Sequence[GenerationConfig | None] | None
"""One config for all prompts, or a list with one per prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Prompts of one call that share their options.

    first: place of the first prompt in the call. alone: whether the options belong to this one prompt.
    """

    prompts: Sequence[Any]
    first: int
    config: GenerationConfig | None
    options: dict[str, Any]
    alone: bool

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the prompt in an OptionError about options of its own."""
        try:
            yield
        except OptionError as error:
            if not self.alone:
                raise
            raise OptionError(
                error.option, error.given, f"of prompt {self.first} {error.allowed}", error.hint
            ) from None


def group_prompts(prompts: Prompts, config: Configs, options: Mapping[str, Any]) -> list[Group]:
    """Return the prompts in groups with the same options: one group, or one per prompt if an option is a list.

    Args:
        prompts: as `Reader.split` returns them.
        config: one for all prompts, or a list with one per prompt (None for no config).
        options: of the call. A list is one value per prompt, unless the option itself takes a list.

    Raises:
        OptionError: if a list has another length than the prompts, or one prompt was given by itself.
    """
    if config is not None and not isinstance(config, GenerationConfig | list | tuple):
        raise OptionError("config", config, "must be an unspool.GenerationConfig", "give options as keywords instead")
    count = len(prompts.items)
    varying = {name: value for name, value in options.items() if _is_per_prompt(name, value)}
    configs = None if config is None or isinstance(config, GenerationConfig) else config
    for name, values in [("config", configs), *varying.items()]:
        if values is not None:
            _check_length(name, values, prompts)
    shared = {name: value for name, value in options.items() if name not in varying}
    if not prompts.single:
        _refuse_ambiguous(shared, count)
    one = config if isinstance(config, GenerationConfig) else None
    if not count or not (varying or configs is not None):
        return [Group(prompts=prompts.items, first=0, config=one, options=shared, alone=False)]
    varying |= _seeds(shared, one, prompts)
    return [
        Group(
            prompts=[prompt],
            first=index,
            config=one if configs is None else configs[index],
            options={**shared, **{name: values[index] for name, values in varying.items()}},
            alone=True,
        )
        for index, prompt in enumerate(prompts.items)
    ]


def _is_per_prompt(name: str, value: Any) -> bool:
    return isinstance(value, list | tuple) and name in OPTIONS and not OPTIONS[name].takes_lists


def _check_length(name: str, values: Sequence[Any], prompts: Prompts) -> None:
    count = len(prompts.items)
    if prompts.single:
        allowed = OPTIONS[name].range if name in OPTIONS else "must be an unspool.GenerationConfig"
        hint = "give a list of prompts for one value per prompt"
        raise OptionError(name, values, f"{allowed} for one prompt", hint)
    if len(values) != count:
        allowed = f"must be one value, or a list with one value for each of the {count} prompts"
        raise OptionError(name, values, f"{allowed} (the list has {len(values)})", f"give {count} values")


def _refuse_ambiguous(options: Mapping[str, Any], count: int) -> None:
    """Raise if a list holds one value per prompt and the option takes a list as one value."""
    for name, values in options.items():
        if name not in OPTIONS or not isinstance(values, list | tuple) or len(values) != count:
            continue
        if not _fits(name, values) and all(_fits(name, value) for value in values):
            hint = f"use config=[GenerationConfig({name}=...), ...] for one value per prompt"
            raise OptionError(name, values, f"{OPTIONS[name].range}; a list is one value for all prompts", hint)


def _fits(name: str, value: Any) -> bool:
    try:
        OPTIONS[name].check(value)
    except OptionError:
        return False
    return True


def _seeds(shared: Mapping[str, Any], config: GenerationConfig | None, prompts: Prompts) -> dict[str, Sequence[int]]:
    """Return a list of seeds, one per prompt, if the call or the shared config gives one."""
    given = shared.get("seed") if "seed" in shared or config is None else config.seed
    if not isinstance(given, list | tuple):
        return {}
    _check_length("seed", given, prompts)
    return {"seed": given}
