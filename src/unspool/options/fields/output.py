"""Options for the reported results and for the engine."""

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
    """Results reported besides the text."""

    logprobs: int | None = option(
        integer(0),
        group=_OUTPUT,
        door="native",
        source="unspool",
        help="Report the model's log-probability of each token, and this many most probable alternatives.",
        hint="use 0 for the output's tokens alone, None to turn it off",
    )
    echo: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="native",
        source="unspool",
        help="Put the prompt before the output.",
    )
    return_dict_in_generate: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="drop_in",
        help="Return transformers' output class instead of a tensor.",
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
    output_attentions: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="drop_in",
        partners=_AS_DICT,
        help="Return the attention weights of every step, from the model's own forward.",
    )
    output_hidden_states: bool = option(
        flag(),
        group=_OUTPUT,
        default=False,
        door="drop_in",
        partners=_AS_DICT,
        help="Return the hidden states of every step, from the model's own forward.",
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Random draws, batching and processor order."""

    seed: int | tuple[int, ...] | None = option(
        seeds(),
        group=_ENGINE,
        source="unspool",
        help="Seed of the random draws: any integer for all prompts, or a list with one per prompt. Different "
        "prompts draw independently under one seed.",
        hint="use None for a fresh seed, which the result reports",
    )
    seed_prompt_tokens: int | None = option(
        integer(0),
        group=_ENGINE,
        read_by="sampling",
        source="unspool",
        help="Number of leading prompt tokens that seed the random draws together with `seed`; if unset, all of them. "
        "To branch from the middle of a text, give the length of its original prompt. With 0, all prompts share "
        "their draws.",
        hint="use None for the whole prompt",
    )
    batch_invariant: bool = option(
        flag(),
        group=_ENGINE,
        default=False,
        source="unspool",
        help="Outputs do not depend on other requests in the batch, to the last bit; slower.",
    )
    processor_order: tuple[str, ...] | None = option(
        names(PROCESSOR_ORDER),
        group=_ENGINE,
        source="unspool",
        help="Names of processors in the desired order; all others keep their places.",
        hint="use None for the default order",
    )
