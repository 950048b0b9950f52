"""Options on what is reported, and on how the engine works."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.kinds import flag, integer, names, seeds
from unspool.options.option import option
from unspool.options.order import PROCESSOR_ORDER

_OUTPUT = "Output"
_ENGINE = "Engine"
_AS_DICT = ("return_dict_in_generate",)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is reported besides the text."""

    logprobs: int | None = option(
        integer(0),
        group=_OUTPUT,
        door="native",
        source="unspool",
        help="Report each token's log-probability under the model, with this many of the best alternatives.",
        hint="use 0 for none besides the tokens themselves, None to turn it off",
    )
    echo: bool = option(
        flag(), group=_OUTPUT, default=False, door="native", source="unspool", help="Put the prompt before the output."
    )
    return_dict_in_generate: bool = option(
        flag(), group=_OUTPUT, default=False, door="drop_in", help="Return transformers' output class, not a tensor."
    )
    output_scores: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="drop_in",
        partners=_AS_DICT,
        help="Return the processed scores of every step.",
    )
    output_logits: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="drop_in",
        partners=_AS_DICT,
        help="Return the model's own logits of every step.",
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the engine works."""

    seed: int | tuple[int, ...] | None = option(
        seeds(),
        group=_ENGINE,
        source="unspool",
        help="Names the random draws: one integer for all prompts, or one for each; any integer will do. Different "
        "prompts draw independently under one seed.",
        hint="use None for a fresh seed, which the result reports",
    )
    seed_prompt_tokens: int | None = option(
        integer(0),
        group=_ENGINE,
        read_by="sampling",
        source="unspool",
        help="Leading tokens of the prompt that name the random draws, besides the seed; unset, all do. To branch from "
        "the middle of a text, give the length of its original prompt. With 0, all prompts share their draws.",
        hint="use None for the whole prompt",
    )
    batch_invariant: bool = option(
        flag(),
        group=_ENGINE,
        default=False,
        source="unspool",
        help="Outputs equal to the last bit whatever else runs at the same time, at the price of speed.",
    )
    processor_order: tuple[str, ...] | None = option(
        names(PROCESSOR_ORDER),
        group=_ENGINE,
        source="unspool",
        help="Processors in the order wanted; those not named keep their places.",
        hint="use None for the default order",
    )
