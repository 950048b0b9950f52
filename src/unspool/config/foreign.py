"""transformers' attributes that are no options here: those without effect on tokens, and those refused.

Together with the option table this covers every attribute of transformers' GenerationConfig, so that an option is
honored, does nothing to the tokens, or is refused with a reason; none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

NO_EFFECT: Final[Mapping[str, str]] = {
    "use_cache": "the engine always keeps its cache",
    "cache_implementation": "the engine has a cache of its own",
    "cache_config": "the engine has a cache of its own",
    "max_cache_len": "the cache grows on demand",
    "compile_config": "a matter of speed",
    "disable_compile": "a matter of speed",
    "low_memory": "a matter of memory",
    "prefill_chunk_size": "the engine cuts prompts into chunks under its own token budget",
    "continuous_batching_config": "the engine batches all requests itself",
    "assistant_lookbehind": "aligns two tokenizers, and a draft model must have the model's own",
    "target_lookbehind": "aligns two tokenizers, and a draft model must have the model's own",
    "is_assistant": "the engine knows which model drafts",
    "transformers_version": "says who wrote a stored config",
    "_from_model_config": "says where a stored config came from",
    "_commit_hash": "says where a stored config came from",
}
"""Accepted, and without effect on the tokens: attribute --> why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an attribute is refused, and what to do instead.

    stored: what becomes of one in a model's stored config: "raise" where leaving it out would change what its author
    promised of the output, "ignore" where the tokens are the same without it or an error speaks for itself.
    """

    reason: str
    remedy: str
    stored: Literal["raise", "ignore"] = "ignore"


_DRAFT = "use another way of drafting, such as an assistant model or `prompt_lookup_num_tokens`"

REFUSED: Final[Mapping[str, Refusal]] = {
    "watermarking_config": Refusal(
        reason="is not supported: watermarking is not among the processors",
        remedy="pass watermarking_config=None to have the text without a watermark",
        stored="raise",
    ),
    "token_healing": Refusal(
        reason="is not supported: prompts are decoded as they are",
        remedy="pass token_healing=False and end the prompt at a word",
        stored="raise",
    ),
    "constraints": Refusal(
        reason="takes objects that transformers itself has dropped",
        remedy="use `force_words_ids`, which says the same in token ids",
    ),
    "remove_invalid_values": Refusal(
        reason="would hide NaN, which always raises here, with the position it came from",
        remedy="leave it out, and mend the model or its precision",
    ),
    "use_mtp": Refusal(reason="is not supported: the model's extra heads are not read", remedy=_DRAFT),
    "assistant_early_exit": Refusal(reason="is not supported: all layers of a model are run", remedy=_DRAFT),
    "speculation_type": Refusal(reason="is not supported", remedy=_DRAFT),
    "assistant_ensemble_weight": Refusal(
        reason="would change the distribution; a draft never changes the output here",
        remedy="leave it out",
    ),
    "output_attentions": Refusal(
        reason="is not supported: the engine keeps no attention maps",
        remedy="run the model's forward once over the finished sequence",
    ),
    "output_hidden_states": Refusal(
        reason="is not supported: the engine keeps no hidden states",
        remedy="run the model's forward once over the finished sequence",
    ),
}
"""Refused when set: attribute --> why. None, False and empty values are accepted."""

Standing: TypeAlias = Literal["honored", "no_effect", "refused", "unknown"]


def is_set(value: Any) -> bool:
    """Return whether a refused attribute's value asks for anything."""
    empty = isinstance(value, str | list | tuple | dict) and not value
    return value is not None and value is not False and not empty
