"""Requests for one processor at a time: contexts with every option off but those named, and rows of scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tests.grammars.toys import compiled
from unspool.processors import PROCESSORS
from unspool.protocols import Context, RowKey
from unspool.types import ModelInfo

OPTIONS = (
    *(name for name in PROCESSORS if name not in ("dry", "xtc")),
    *("prompt_ignore_length", "penalty_scope", "penalty_exclude"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_sequence_breakers", "dry_range"),
    *("xtc_probability", "xtc_threshold", "xtc_exclude"),
    "penalty_alpha",
)
"""Every attribute that a processor reads from its config."""

INF = float("inf")

VARIANTS: dict[str, list[Any]] = {
    "grammar": [compiled(regex=pattern, vocab_size=40_000) for pattern in ("b(d|ab)*", "[ab]*bc?", "(d|b|c)+-")],
    "sequence_bias": [{(3,): 1.5, (4, 5): 2.0, (1, 4, 5): -3.0}, {(2,): -1.0}, {(5, 6): 4.0, (6,): 1.0}],
    "diversity_penalty": [0.5, 10.0, 0.1],
    "encoder_repetition_penalty": [1.5, 0.8, 3.0],
    "repetition_penalty": [1.5, 0.8, 3.0],
    "presence_penalty": [0.5, -0.25, 1.75],
    "frequency_penalty": [0.5, -0.25, 1.75],
    "dry": [
        {"dry_multiplier": 0.8},
        {"dry_multiplier": 1.0, "dry_base": 1.1, "dry_allowed_length": 1},
        {"dry_multiplier": 2.0, "dry_sequence_breakers": ((3,), (4, 5)), "dry_range": 9},
    ],
    "no_repeat_ngram_size": [1, 2, 3],
    "encoder_no_repeat_ngram_size": [1, 2, 3],
    "bad_words_ids": [[[3]], [[4, 5], [0]], [[1, 2, 3], [2, 3]]],
    "min_length": [16, 20, 100],
    "min_new_tokens": [1, 3, 100],
    "forced_bos_token_id": [1, 2, 3],
    "forced_eos_token_id": [1, [2, 3], 4],
    "exponential_decay_length_penalty": [(0, 1.2), (1, 1.5), (3, 1.01)],
    "suppress_tokens": [[0], [1, 2], [3, 4, 5]],
    "begin_suppress_tokens": [[0], [1, 2], [3, 4, 5]],
    "temperature": [0.5, 1.3, 0.07],
    "top_h": [0.2, 0.5, 0.9],
    "top_k": [1, 7, 80],
    "top_p": [0.1, 0.6, 0.95],
    "min_p": [0.5, 0.1, 0.01],
    "typical_p": [0.2, 0.6, 0.95],
    "epsilon_cutoff": [0.3, 0.01, 0.0003],
    "eta_cutoff": [0.3, 0.01, 0.0003],
    "top_n_sigma": [0.5, 1.0, 2.0],
    "xtc": [
        {"xtc_probability": 1.0},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01, "xtc_exclude": (1,)},
    ],
    "remove_invalid_values": [True, True, True],
    "renormalize_logits": [True, True, True],
}
"""name --> three settings of each processor: values of the option of that name, or several options."""


def named(name: str, setting: Any) -> dict[str, Any]:
    """Return the options that a setting in VARIANTS stands for."""
    return setting if name in ("dry", "xtc") else {name: setting}


def context(
    prompt: Sequence[int] = (0,),
    *,
    vocab_size: int = 100,
    eos: Sequence[int] = (),
    max_new_tokens: int = 50,
    min_tokens_to_keep: int = 1,
    source: Sequence[int] | None = None,
    **options: Any,
) -> Context:
    """Return the context of a request with the given options on, every other one off; source: None for the prompt."""
    grammar = options.pop("grammar", None)
    unknown = options.keys() - set(OPTIONS)
    assert not unknown, unknown
    return Context(
        config=SimpleNamespace(**(dict.fromkeys(OPTIONS) | options)),
        prompt=tuple(prompt),
        max_new_tokens=max_new_tokens,
        seed=0,
        info=ModelInfo(name="none", vocab_size=vocab_size),
        eos_token_ids=tuple(eos),
        min_tokens_to_keep=min_tokens_to_keep,
        source_ids=tuple(prompt if source is None else source),
        grammar=grammar,
    )


def state_of(name: str, request: Context, output: Sequence[int] = ()) -> Any:
    """Return the processor's state after the prompt and the output."""
    state = PROCESSORS[name].start(request)
    assert state is not None, f"{name} is off"
    for token in output:
        state = PROCESSORS[name].advance(state, token)
    return state


AVOIDED = ((7, 2, 7), (3,), (0, 1, 2, 0))
"""What rows 0, 1, 2 are to avoid, where no test says otherwise; the rows behind, nothing."""


def applied(
    name: str,
    states: Sequence[Any],
    scores: torch.Tensor,
    position: int = 0,
    taken_tokens: Sequence[tuple[int, ...]] = AVOIDED,
) -> torch.Tensor:
    """Return what the processor makes of a copy of the scores; row r draws under seed r and avoids `avoid[r]`."""
    taken_tokens = [*taken_tokens, *[()] * len(states)]
    keys = [RowKey(row, 0, 0, position, taken_tokens[row]) for row in range(len(states))]
    return PROCESSORS[name].apply(states, scores.clone(), keys)


def one(name: str, scores: Sequence[float] | torch.Tensor, output: Sequence[int] = (), **request: Any) -> list[float]:
    """Return what the processor makes of a single row, for a request given as to `context`."""
    row = torch.as_tensor(scores, dtype=torch.float32)
    full = context(vocab_size=len(row), **request)
    return applied(name, [state_of(name, full, output)], row[None])[0].tolist()


def kept(name: str, probs: Sequence[float], **request: Any) -> list[int]:
    """Return the tokens that the processor leaves allowed of a distribution."""
    result = one(name, torch.tensor(probs).log(), **request)
    return [token for token, score in enumerate(result) if score > -INF]
