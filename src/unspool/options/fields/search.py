"""Options that choose the strategy, and those of the searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspool.options.kinds import choice, flag, integer, layers, real, strategy_name, text_or_tokens, wordings
from unspool.options.option import option
from unspool.options.token_kinds import Template, forced_words

_SEARCH = "Search"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which strategy decodes, and how wide it searches."""

    do_sample: bool | None = option(
        flag(),
        group=_SEARCH,
        off=False,
        help="Draw tokens at random instead of taking the best; unset, it is on when a sampling option is asked for "
        "with a value that changes something (off in the drop-in).",
        hint="leave it out to have the other options decide",
    )
    strategy: str | None = option(
        strategy_name(),
        group=_SEARCH,
        source="unspool",
        help="The decoding strategy by name; unset, the other options choose it by transformers' rules.",
        hint="leave it out to have the other options decide",
    )
    num_return_sequences: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="sampling",
        help="Outputs for each prompt, best first; with beams at most `num_beams`.",
    )
    num_beams: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="named",
        help="Beams of a beam search; 1 is no beam search.",
    )
    length_penalty: float = option(
        real(-50, 50),
        group=_SEARCH,
        default=1.0,
        read_by="named",
        help="A beam's summed log-probability is divided by its length to this power. 1 ranks by the mean per token, "
        "0 by the sum; the higher, the longer the outputs.",
    )
    early_stopping: bool | Literal["never"] = option(
        choice(True, False, "never"),
        group=_SEARCH,
        default=False,
        read_by="named",
        help="When a beam search ends: True with `num_beams` finished outputs, False when a better one is unlikely, "
        "'never' when none can come.",
    )
    lookahead_steps: int | None = option(
        integer(1),
        group=_SEARCH,
        source="unspool",
        read_by="named",
        help="Commit a token once the best beam has held it for this many steps, and drop beams that disagree: text "
        "streams sooner, and the output may differ from that of the full search.",
    )
    num_beam_groups: int = option(
        integer(1),
        group=_SEARCH,
        default=1,
        read_by="named",
        help="Groups that the beams are divided into for diverse beam search; divides `num_beams`.",
    )
    diversity_penalty: float = option(
        real(0),
        group=_SEARCH,
        default=0.0,
        read_by="named",
        help="Taken off a token's score for each earlier beam group that chose it at the same step.",
    )
    force_words_ids: tuple[Template | tuple[Template, ...], ...] | None = option(
        forced_words(),
        group=_SEARCH,
        read_by="named",
        help="Token sequences that every output must hold; a list of sequences stands for any one of them, and None "
        "inside a sequence for a gap of any length.",
    )
    force_words: tuple[str | tuple[str, ...], ...] | None = option(
        wordings(),
        group=_SEARCH,
        door="native",
        source="unspool",
        read_by="named",
        help="Texts that every output must hold; a list of texts stands for any one of them.",
    )
    force_words_ordered: bool = option(
        flag(),
        group=_SEARCH,
        default=False,
        source="unspool",
        read_by="named",
        partners=("force_words_ids", "force_words"),
        help="The forced words must come in the order given, without overlapping.",
    )
    penalty_alpha: float | None = option(
        real(0, 1),
        group=_SEARCH,
        off=0.0,
        read_by="named",
        help="Weight of the degeneration penalty of contrastive search, which needs `top_k` above 1 as well.",
    )
    dola_layers: str | tuple[int, ...] | None = option(
        layers(),
        group=_SEARCH,
        help="Layers whose logits are contrasted with the last one's: 'low', 'high', or their numbers.",
    )
    guidance_scale: float | None = option(
        real(0),
        group=_SEARCH,
        off=1.0,
        help="Scores move away from those of the negative prompt by this factor; above 1 strengthens the prompt.",
    )
    negative_prompt: str | tuple[int, ...] | None = option(
        text_or_tokens(),
        group=_SEARCH,
        door="native",
        source="unspool",
        partners=("guidance_scale",),
        help="What `guidance_scale` moves away from, as a text or token ids; unset, the prompt's last token alone.",
    )
    best_of: int | None = option(
        integer(1),
        group=_SEARCH,
        source="unspool",
        samples=True,
        read_by="named",
        help="Samples drawn for each prompt, of which the best `num_return_sequences` are returned.",
    )
    best_of_by: Literal["logprob", "mbr"] = option(
        choice("logprob", "mbr"),
        group=_SEARCH,
        default="logprob",
        source="unspool",
        read_by="named",
        partners=("best_of",),
        help="What makes a sample the best: its mean log-probability a token, or minimum Bayes risk, its mean "
        "resemblance to all other samples.",
    )
