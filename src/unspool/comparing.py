"""Comparison of strategies: several entries, each with its own options, run in one batch.

Owns: the built-in line-up, and the rules for options shared by all entries. Does not know: how options resolve
(unspool.config), how requests run, or how the answers are rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from unspool.config import OPTIONS, GenerationConfig
from unspool.config.strategies import choose_strategy, meets_needs, reads_assistant
from unspool.errors import OptionError
from unspool.options.option import UNSET
from unspool.per_prompt import Group
from unspool.results.comparison import Compared, Comparison
from unspool.results.generation import Generation
from unspool.strategies import STRATEGIES
from unspool.types import ModelInfo

if TYPE_CHECKING:
    from unspool.planning import PlannedRequest

Entries: TypeAlias = Mapping[str, Mapping[str, Any] | GenerationConfig] | Sequence[str]
Planner: TypeAlias = Callable[[Group, GenerationConfig, dict[str, Any]], "list[PlannedRequest]"]
Runner: TypeAlias = Callable[[Sequence["PlannedRequest"]], list[Generation]]

_WIDTH: Final = 4

LINE_UP: Final[Mapping[str, Mapping[str, Any]]] = {
    entry: {"strategy": name, **options}
    for name, strategy in STRATEGIES.items()
    for entry, options in (strategy.facts.line_up or {name: {}}).items()
}
"""The built-in entries in order. The strategy is fixed; the call can override the other options."""

_OBJECTS: Final = ("processors", "criteria", "assistant_model", "decoder_input_ids", "language", "task")
"""Arguments of a call that are not in the option table."""

_SUPERSEDES: Final = {
    "max_new_tokens": "max_length",
    "max_length": "max_new_tokens",
    "min_new_tokens": "min_length",
    "min_length": "min_new_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One entry. own: its own options, which its strategy must read. presets: defaults that the caller can override."""

    name: str
    own: Mapping[str, Any]
    presets: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A planned entry. jobs: one per prompt. unread: shared options that its strategy does not read."""

    entry: _Entry
    jobs: list[PlannedRequest]
    unread: frozenset[str]


def line_up() -> tuple[str, ...]:
    """Return the names of the built-in entries of this version, in order."""
    return tuple(LINE_UP)


def check_names(names: Iterable[Any]) -> None:
    """Check that all names are in the line-up.

    Raises:
        OptionError: if a name is not, or is given twice.
    """
    seen: list[Any] = []
    for name in names:
        if name in seen:
            raise OptionError("strategies", name, "must name each entry once", "leave one out")
        seen.append(name)
        if name not in line_up():
            allowed = f"must name entries of the line-up ({', '.join(line_up())})"
            raise OptionError("strategies", name, allowed, "in Python, a mapping of names to options takes any name")


def compare(
    strategies: Entries | None,
    groups: Sequence[Group],
    *,
    stored: GenerationConfig,
    info: ModelInfo,
    plan: Planner,
    run: Runner,
) -> list[Comparison]:
    """Answer every prompt in several ways, all in one batch.

    Args:
        strategies: entries by name, names of the line-up, or None for all entries that this model and call can run.
        groups: prompts with their options, which reach every entry with a strategy that reads them.
        stored: the model's config.
        info: of the model.
        plan: plans the requests of a group, from a config and the options that override it.
        run: runs requests together.

    Returns:
        One comparison per prompt, in order.

    Raises:
        OptionError: if an option is invalid, before any work starts. It names the entry, if one is at fault.
    """
    planned: list[list[_Planned]] = []
    for group in groups:
        with group.naming():
            planned.append(_plan_group(strategies, group, stored=stored, info=info, plan=plan))
    jobs: list[list[PlannedRequest]] = []  # --> [prompts, entries]
    for entries in planned:
        jobs += map(_under_one_seed, zip(*(each.jobs for each in entries), strict=True))
    generations = iter(run([job for prompt in jobs for job in prompt]))
    return [
        Comparison(rows=tuple(_row(each, next(generations)) for each in entries))
        for group, entries in zip(groups, planned, strict=True)
        for _ in group.prompts
    ]


def _row(planned: _Planned, generation: Generation) -> Compared:
    return Compared.of(planned.entry.name, generation, unread=tuple(sorted(planned.unread)))


def _plan_group(
    strategies: Entries | None, group: Group, *, stored: GenerationConfig, info: ModelInfo, plan: Planner
) -> list[_Planned]:
    """Return every entry with one request per prompt of the group."""
    config, shared = group.config, group.options
    if config is not None and not isinstance(config, GenerationConfig):
        raise OptionError("config", config, "must be an unspool.GenerationConfig", "give options as keywords instead")
    objects = {name: value for name, value in shared.items() if name in _OBJECTS}
    if not isinstance(shared.get("strategy"), str | None):
        objects["strategy"] = shared["strategy"]
    below = _layered(config, {name: value for name, value in shared.items() if name not in objects})
    entries = _entries(strategies, below, objects, info)
    if not group.prompts:
        return []
    planned = [
        _plan(entry, below, objects, stored=stored, plan=lambda layer, own: plan(group, layer, own))
        for entry in entries
    ]
    _check_read(planned, {**_given(below), **objects})
    return planned


# --- which entries ------------------------------------------------------------------------------------------------


def _entries(
    strategies: Entries | None, below: GenerationConfig, objects: Mapping[str, Any], info: ModelInfo
) -> list[_Entry]:
    if isinstance(strategies, Mapping):
        entries = [_own_entry(name, options) for name, options in strategies.items()]
    elif strategies is None or (isinstance(strategies, Sequence) and not isinstance(strategies, str)):
        if "strategy" in below.explicit or "strategy" in objects:
            given = objects.get("strategy", below.strategy)
            raise OptionError("strategy", given, "is set by each entry", "name entries in `strategies` instead")
        check_names(strategies or ())
        names = line_up() if strategies is None else dict.fromkeys(strategies)
        entries = [_built_in(name, below) for name in names]
        if strategies is None:  # planning a named entry raises an error with the missing need
            entries = [entry for entry in entries if _can_run(entry, below, objects, info)]
    else:
        allowed = "must be a mapping of names to options, or a list of names of the line-up"
        raise OptionError("strategies", strategies, allowed, "leave it out for the whole line-up")
    if not entries:
        raise OptionError("strategies", strategies, "must hold at least one entry", "leave it out for the line-up")
    return entries


def _own_entry(name: Any, options: Any) -> _Entry:
    if not isinstance(name, str) or not name:
        raise OptionError("strategies", name, "must have texts as names", 'such as {"narrow": {"num_beams": 2}}')
    if isinstance(options, GenerationConfig):
        # Names with an underscore describe the origin of a stored config.
        extras = {name: value for name, value in options.extras.items() if not name.startswith("_")}
        options = {**extras, **_given(options)}
    if not isinstance(options, Mapping):
        allowed = f"must have a mapping of options or a GenerationConfig under {name!r}"
        raise OptionError("strategies", options, allowed, 'such as {"narrow": {"num_beams": 2}}')
    return _Entry(name=name, own=options, presets={})


def _built_in(name: str, below: GenerationConfig) -> _Entry:
    """Return an entry of the line-up, with presets that fit the caller's options."""
    presets = dict(LINE_UP[name])
    own = {"strategy": presets.pop("strategy")}
    for width in ("num_beams", "best_of"):
        if width in presets:
            presets[width] = max(_WIDTH, below.num_return_sequences)
    if "num_beam_groups" in presets:
        presets["num_beam_groups"] = below.num_beams if "num_beams" in below.explicit else presets["num_beams"]
    return _Entry(name=name, own=own, presets={name: presets[name] for name in presets if name not in below.explicit})


def _can_run(entry: _Entry, below: GenerationConfig, objects: Mapping[str, Any], info: ModelInfo) -> bool:
    """Return True if the model and the call meet the needs of the entry."""
    name = entry.own["strategy"]
    strategy = STRATEGIES[name]
    if strategy.hidden_states and not info.hidden_states:
        return False
    if strategy.inner_layers and info.num_layers is None:
        return False
    return meets_needs(name, {**_values(below), **entry.presets}, assistant="assistant_model" in objects)


# --- the options of one entry --------------------------------------------------------------------------------------


def _plan(
    entry: _Entry,
    below: GenerationConfig,
    objects: Mapping[str, Any],
    *,
    stored: GenerationConfig,
    plan: Callable[[GenerationConfig, dict[str, Any]], list[PlannedRequest]],
) -> _Planned:
    """Plan the entry, without the shared options that its strategy does not read."""
    whole = below.replace(**entry.presets)
    layer, own = whole, {**objects, **entry.own}
    refusals: dict[str, OptionError] = {}
    while True:
        try:
            jobs = plan(layer, own)
            break
        except OptionError as error:
            option = error.option
            if option == "assistant_model" and option not in entry.own and not _reads_assistant(own.get("strategy")):
                del own[option]
            elif option in layer.explicit and option not in own:
                layer = layer.replace(**{option: UNSET})
            else:
                raise _named(error, entry.name) from None
            refusals[option] = error
    # The refusal stands if its reason was not that the strategy ignores the option.
    values = {**_values(stored), **_given(whole), **_checked(own)}
    for option, refusal in refusals.items():
        if not _is_unread(option, jobs[0], values, named="strategy" in own):
            raise _named(refusal, entry.name)
    return _Planned(entry=entry, jobs=jobs, unread=frozenset(refusals) - entry.presets.keys())


def _reads_assistant(strategy: Any) -> bool:
    return isinstance(strategy, str) and strategy in STRATEGIES and reads_assistant(strategy)


def _is_unread(option: str, job: PlannedRequest, values: Mapping[str, Any], *, named: bool) -> bool:
    """Return True if the selected strategy does not read this option.

    Args:
        option: was refused, and removed.
        job: the request that was planned without it.
        values: all options, with the removed ones.
        named: True if the entry names its strategy.
    """
    config = job.request.config
    assistant = option == "assistant_model" or job.request.assistant is not None
    if option == "do_sample":
        return named
    if not (named or values["strategy"]):
        chosen = choose_strategy(values, do_sample=bool(config.do_sample), assistant=assistant)
        if chosen != config.strategy:
            return False
    if option == "assistant_model":
        return True
    row = OPTIONS[option]
    if row.partners and all(OPTIONS[partner].is_off(getattr(config, partner)) for partner in row.partners):
        return True
    return (row.read_by != "all" and config.strategy not in row.read_by) or (row.samples and not config.do_sample)


def _named(error: OptionError, name: str) -> OptionError:
    return OptionError(error.option, error.given, f"of the entry {name!r} {error.allowed}", error.hint)


def _layered(config: GenerationConfig | None, options: Mapping[str, Any]) -> GenerationConfig:
    """Return the config with overriding options. Each of them also replaces its counterpart (max_length, ...)."""
    counterparts = {_SUPERSEDES[name]: UNSET for name in options if name in _SUPERSEDES}
    return (config or GenerationConfig()).replace(**{**counterparts, **options})


def _given(config: GenerationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPTIONS if name in config.explicit}


def _checked(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the normalized values among an entry's own options, without the strategy."""
    values = {name: value for name, value in own.items() if name in OPTIONS and name != "strategy"}
    return _given(GenerationConfig(**values))


def _values(config: GenerationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPTIONS}


# --- all entries together --------------------------------------------------------------------------------------------


def _check_read(planned: Sequence[_Planned], shared: Mapping[str, Any]) -> None:
    """Raise OptionError for a shared option that no entry reads."""
    for option in sorted({option for each in planned for option in each.unread}):
        if all(option in each.unread or option in each.entry.own for each in planned):
            unread = ", ".join(each.entry.name for each in planned if option in each.unread)
            raise OptionError(
                option,
                shared[option],
                f"is not read by any entry that it would reach ({unread})",
                "leave it out, or add an entry with a strategy that reads it",
            )


def _under_one_seed(jobs: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """Give all requests without a seed the same one."""
    first = next((job.request.seed for job in jobs if job.request.config.seed is None), None)
    return [
        job
        if first is None or job.request.config.seed is not None
        else replace(job, request=replace(job.request, seed=first))
        for job in jobs
    ]
