"""The canonical order of the logits processors, by name.

Owns: the names and their order, so that the option table can check `processor_order` without importing torch. Does not
know: the computation of a processor.
"""

from __future__ import annotations

from typing import Final

# The grammar comes first, so that truncation keeps shares of the allowed tokens only. Penalties and constraints follow,
# on the scale of the model's logits. User processors come before temperature and truncation, so that they see the
# scores of all allowed tokens.
PROCESSOR_ORDER: Final[tuple[str, ...]] = (
    "grammar",
    "sequence_bias",
    "diversity_penalty",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "user",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_n_sigma",
    "xtc",
    "renormalize_logits",
)


def complete_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all processors, with `names` reordered among their own default places.

    Example: ("top_p", "temperature") swaps these two; all other processors keep their places.
    """
    wanted = iter(names)
    return tuple(next(wanted) if name in names else name for name in PROCESSOR_ORDER)
