"""The canonical order of the processors, by name.

Owns: the names and their order, so that the option table can check `processor_order` without importing torch.
Does not know: what a processor computes.
"""

from __future__ import annotations

from typing import Final

# Penalties and constraints come first, on the model's own scale; then the user's processors, which therefore see
# every score that may still be sampled; then temperature and the truncations, which act on what is left.
PROCESSOR_ORDER: Final[tuple[str, ...]] = (
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
    """Return every processor's name: the named ones in the order given, in the places they hold by default.

    So ("top_p", "temperature") swaps the two and moves nothing else, and no processor falls out of the chain.
    """
    wanted = iter(names)
    return tuple(next(wanted) if name in names else name for name in PROCESSOR_ORDER)
