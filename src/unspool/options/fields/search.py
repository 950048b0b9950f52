"""Options that choose the strategy, and options of the searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspool.options.kinds import choice, flag, integer, layers, real, strategy_name, text_or_tokens, wordings
from unspool.options.option import option
from unspool.options.token_kinds import Template, forced_words

_SEARCH = "Search"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The strategy and its search parameters."""

    do_sample: bool | None = option(
        flag(),
        group=_SEARCH,
        off=False,
        help="Sample tokens instead of taking the best. If unset, a requested sampling option turns it on, except in "
        "`unspool.generate`.",
        hint="leave it out to let the other options decide",
    )
    strategy: str | None = option(
        strategy_name(),
        group=_SEARCH,
        source="unspool",
        help="Name of the decoding strategy; if unset, the other options choose it by transformers' rules.",
        hint="leave it out to let the other options decide; docs/extending.md says how to add one",
    )
    num_return_sequences: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="sampling",
        help="Number of outputs per prompt, best first; with beams at most `num_beams`.",
    )
    num_beams: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="named",
        help="Number of beams; 1 turns beam search off.",
    )
    length_penalty: float = option(
        real(-50, 50),
        group=_SEARCH,
        default=1.0,
        read_by="named",
        help="Exponent of the length that divides a beam's summed log-probability: 1 ranks by the mean per token, 0 by "
        "the sum; higher values favor longer outputs.",
    )
    early_stopping: bool | Literal["never"] = option(
        choice(True, False, "never"),
        group=_SEARCH,
        default=False,
        read_by="named",
        help="End of a beam search: True at `num_beams` finished outputs, False if a better output is unlikely, "
        "'never' if a better output is impossible.",
    )
    lookahead_steps: int | None = option(
        integer(1),
        group=_SEARCH,
        source="unspool",
        read_by="named",
        help="Commit a token after it was in the best beam for this many steps, and drop beams that disagree. Text "
        "streams sooner, and the output can differ from that of the full search.",
    )
    num_beam_groups: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="named",
        help="Number of beam groups of diverse beam search; must divide `num_beams`.",
    )
    diversity_penalty: float = option(
        real(0),
        group=_SEARCH,
        default=0.0,
        read_by="named",
        help="Subtracted from a token's score for each earlier beam group that chose it at the same step.",
    )
    force_words_ids: tuple[Template | tuple[Template, ...], ...] | None = option(
        forced_words(),
        group=_SEARCH,
        read_by="named",
        help="Token sequences that every output must contain. Of a list of sequences, one is enough. None inside a "
        "sequence allows a gap of any length.",
    )
    force_words: tuple[str | tuple[str, ...], ...] | None = option(
        wordings(),
        group=_SEARCH,
        door="native",
        source="unspool",
        read_by="named",
        help="Texts that every output must contain; of an inner list of texts, one is enough.",
    )
    force_words_ordered: bool = option(
        flag(),
        group=_SEARCH,
        default=False,
        source="unspool",
        read_by="named",
        partners=("force_words_ids", "force_words"),
        help="Require the forced words in the given order, without overlap.",
    )
    penalty_alpha: float | None = option(
        real(0, 1),
        group=_SEARCH,
        off=0.0,
        read_by="named",
        help="Weight of the degeneration penalty of contrastive search; also needs `top_k` above 1.",
    )
    dola_layers: str | tuple[int, ...] | None = option(
        layers(),
        group=_SEARCH,
        help="DoLa: layers to contrast with the last layer: 'low', 'high', or layer numbers.",
    )
    guidance_scale: float | None = option(
        real(0),
        group=_SEARCH,
        off=1.0,
        help="Classifier-free guidance: moves the scores away from those of the negative prompt by this factor; "
        "above 1 strengthens the prompt.",
    )
    negative_prompt: str | tuple[int, ...] | None = option(
        text_or_tokens(),
        group=_SEARCH,
        door="native",
        source="unspool",
        partners=("guidance_scale",),
        help="Negative prompt of `guidance_scale`, as text or token ids; if unset, the prompt's last token alone.",
    )
    best_of: int | None = option(
        integer(1),
        group=_SEARCH,
        source="unspool",
        samples=True,
        read_by="named",
        help="Number of samples per prompt; the best `num_return_sequences` of them are returned.",
    )
    best_of_by: Literal["logprob", "mbr"] = option(
        choice("logprob", "mbr"),
        group=_SEARCH,
        default="logprob",
        source="unspool",
        read_by="named",
        partners=("best_of",),
        help="Ranking of the samples: by mean log-probability per token, or by minimum Bayes risk (mean similarity to "
        "all other samples).",
    )
