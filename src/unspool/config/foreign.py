"""Attributes of transformers' GenerationConfig that are not options: ignored (no effect on tokens) or refused.

With the option table, this covers every attribute of transformers' GenerationConfig: each is honored, does not change
the tokens, or is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

NO_EFFECT: Final[Mapping[str, str]] = {
    "use_cache": "the engine always uses its KV cache",
    "cache_implementation": "the engine has its own KV cache",
    "cache_config": "the engine has its own KV cache",
    "max_cache_len": "the KV cache grows on demand",
    "compile_config": "affects speed only",
    "disable_compile": "affects speed only",
    "low_memory": "affects memory only",
    "prefill_chunk_size": "the engine splits prompts into chunks by its own token budget",
    "continuous_batching_config": "the engine always uses continuous batching",
    "assistant_lookbehind": "aligns two tokenizers; a draft model must have the model's tokenizer",
    "target_lookbehind": "aligns two tokenizers; a draft model must have the model's tokenizer",
    "is_assistant": "the engine knows the draft model",
    "transformers_version": "version of the library that wrote a stored config",
    "_from_model_config": "origin of a stored config",
    "_commit_hash": "origin of a stored config",
}
"""Accepted attributes without effect on the tokens: attribute --> reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The reason for refusing an attribute, and the remedy.

    stored: handling of the attribute in a model's stored config. "raise" if ignoring it would silently change the
    output that the config's author intended, else "ignore".
    """

    reason: str
    remedy: str
    stored: Literal["raise", "ignore"] = "ignore"


_DRAFT = "use another way of drafting, such as an assistant model or `prompt_lookup_num_tokens`"

REFUSED: Final[Mapping[str, Refusal]] = {
    "watermarking_config": Refusal(
        reason="is not supported: watermarking is not among the processors",
        remedy="pass watermarking_config=None to generate without a watermark",
        stored="raise",
    ),
    "token_healing": Refusal(
        reason="is not supported: the tokens of a prompt are never changed",
        remedy="pass token_healing=False and end the prompt at a word",
        stored="raise",
    ),
    "constraints": Refusal(
        reason="takes constraint objects that transformers has removed",
        remedy="use `force_words_ids` with token ids",
    ),
    "use_mtp": Refusal(reason="is not supported: the model's MTP heads are not loaded", remedy=_DRAFT),
    "assistant_early_exit": Refusal(reason="is not supported: every forward pass runs all layers", remedy=_DRAFT),
    "speculation_type": Refusal(reason="is not supported", remedy=_DRAFT),
    "assistant_ensemble_weight": Refusal(
        reason="would change the distribution; a draft never changes the output here",
        remedy="leave it out",
    ),
}
"""Refused attributes: attribute --> Refusal. None, False and empty values are accepted."""

Standing: TypeAlias = Literal["honored", "no_effect", "refused", "unknown"]


def is_set(value: Any) -> bool:
    """Return True if the value of a refused attribute is not None, False or empty."""
    empty = isinstance(value, str | list | tuple | dict) and not value
    return value is not None and value is not False and not empty
