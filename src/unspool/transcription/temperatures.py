"""The decoding options of each temperature of a transcription.

Owns: greedy or beam search at 0, sampling above. Does not know: when a temperature is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unspool.config import GenerationConfig
from unspool.errors import OptionError
from unspool.planning import CallerObjects, resolve_options


class Options(NamedTuple):
    """The resolved options of one temperature."""

    config: GenerationConfig
    own: CallerObjects


def resolve_temperatures(
    options: Mapping[str, Any],
    user: GenerationConfig | None,
    stored: GenerationConfig,
    temperatures: Sequence[float | None],
    *,
    drop_in: bool = False,
    ignored: list[OptionError] | None = None,
) -> dict[float | None, Options]:
    """Return the options of each temperature: sampling above 0, else those of the call.

    An option is ignored if no temperature reads it.

    Args:
        options: of the call, without `temperature`.
        user, stored, drop_in: as in `resolve_options`.
        temperatures: None for the options as they are.
        ignored: collects the errors of such options; None to raise the first.
    """
    found: dict[float | None, Options] = {}
    unread: list[dict[str, OptionError]] = []
    for temperature in temperatures:
        errors: list[OptionError] = []
        given = {**options, "num_return_sequences": 1}
        if temperature is not None:
            given["do_sample"] = temperature > 0
        if temperature:
            given |= {"temperature": temperature, "num_beams": 1}
        found[temperature] = Options(*resolve_options(given, user, stored, drop_in=drop_in, ignored=errors))
        unread.append({error.option: error for error in errors})
    for name, error in unread[0].items():
        if all(name in each for each in unread):
            if ignored is None:
                raise error
            ignored.append(error)
    return found
