"""Facts for the forms of the explorer: the model, the strategies and the option table, as plain JSON."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any, Final

from unspool.comparing import LINE_UP
from unspool.config import OPTIONS
from unspool.options.option import Option
from unspool.serving.execution.service import Service
from unspool.strategies import STRATEGIES
from unspool.strategy_facts import ASSISTANT

_HIDDEN: Final = frozenset({"strategy", "seed", "echo", "logprobs"})
"""Options that the page sets in another place, or that change only the form of a result."""

_INTERVALS: Final = {
    "0 or in [1e-18, 1e18]": "at least 0",
    "in [1e-18, 1e18]": "above 0",
    "in (0, 1e18]": "above 0",
    "in [0, 1e18]": "at least 0",
    "in [1, 1e18]": "at least 1",
    "in [-1e18, 1e18]": "any number",
}

_COMMON: Final = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")

_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "assisted": {"prompt_lookup_num_tokens": 3},
    "constrained_beam": {"num_beams": 4, "force_words": ["forest"]},
}
"""First options of strategies that are not in the line-up, or that need more than it sets."""

_ENTRIES: Final[tuple[dict[str, Any], ...]] = (
    {"name": "greedy", "strategy": "greedy", "options": {}},
    {"name": "beam", "strategy": "beam", "options": {"num_beams": 4}},
    {"name": "top_p", "strategy": "sample", "options": {"temperature": 0.8, "top_p": 0.9}},
)
"""First entries of a comparison."""

_LONG: Final = frozenset({"json_schema", "regex", "grammar"})
"""Options with long values, which get a field of several lines."""


def facts(service: Service) -> dict[str, Any]:
    """Return the facts of a server."""
    info = service.lm.info
    return {
        "version": version("unspool"),
        "model": {
            "name": info.name,
            "backend": info.backend,
            "vocab_size": info.vocab_size,
            "max_length": info.max_length,
            "has_tokenizer": service.lm.tokenizer is not None,
            "takes_path": not info.needs_source,
        },
        "names": list(service.names),
        "assistants": list(service.assistants),
        "strategies": [_strategy(name) for name in STRATEGIES],
        "entries": [dict(each) for each in _ENTRIES],
        "options": [_option(row) for row in OPTIONS.values() if row.door != "drop_in" and row.name not in _HIDDEN],
    }


def _strategy(name: str) -> dict[str, Any]:
    own = STRATEGIES[name].facts
    first: dict[str, Any] = next(
        (dict(entry) for entry in LINE_UP.values() if entry["strategy"] == name and len(entry) > 1), {}
    )
    first.pop("strategy", None)
    return {
        "name": name,
        "needs": f"Needs {own.needs}.".replace("`", "") if own.needs else "Needs no option.",
        "samples": own.samples,
        "presets": _PRESETS.get(name, {} if name == "sample" else first),
        "reads_assistant": ASSISTANT in own.reads,
        "form": _form(name),
    }


def _form(strategy: str) -> list[list[Any]]:
    """Return the options that a strategy reads, as parts of a form: [title, names]. The first title is empty."""
    samples = STRATEGIES[strategy].facts.samples
    read = [
        row
        for row in OPTIONS.values()
        if row.door != "drop_in"
        and row.name not in _HIDDEN
        and (row.read_by == "all" or strategy in row.read_by)
        and (row.name != "do_sample" or samples == "optional")
    ]
    own = [row.name for row in read if row.read_by != "all" and row.group not in ("Sampling", "Engine")]
    first = [*own, *(row.name for row in read if row.name in _COMMON or row.name == "do_sample")]
    groups = dict.fromkeys(row.group for row in read)
    parts = [[group, [row.name for row in read if row.group == group and row.name not in first]] for group in groups]
    return [["", first], *(part for part in parts if part[1])]


def _placeholder(row: Option) -> str:
    """Return the default as text; "off" for None."""
    value = row.plain(row.shown_default)
    return "off" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _range(words: str) -> str:
    """Return the accepted values in few words: "above 0" for the interval up to the largest number."""
    found = words.removeprefix("must be ")
    return _INTERVALS.get(found, found)


def _option(row: Option) -> dict[str, Any]:
    return {
        "name": row.name,
        "help": row.help.replace("`", ""),
        "range": _range(row.kind.json_words or row.range),
        "choices": ["true", "false"]
        if row.cli_type == "bool"
        else [str(each) for each in row.kind.schema.get("enum", ())],
        "long": row.name in _LONG,
        "type": row.cli_type,
        "placeholder": _placeholder(row),
        "partners": list(row.partners),
        "multiple": row.multiple,
        "separator": row.kind.separator,
    }
