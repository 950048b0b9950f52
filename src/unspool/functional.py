"""Decoding steps as pure functions on logits, for your own loops over `model(input_ids).logits`.

    from unspool import functional as F

    logits = model(ids).logits[:, -1]                                # [batch, vocab]
    logits = F.top_p(F.temperature(logits, 0.8), 0.92)
    ids = torch.cat([ids, F.sample(logits)[:, None]], dim=1)

Logits are tensors [..., vocab] of any floating type on any device; -inf is a forbidden token. Every function returns a
new tensor, without gradients; logits are returned in float32. The strategies' logits processors do the arithmetic.

Owns: shapes and argument checks. Does not know: requests, caches, or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from unspool.config import OPTIONS
from unspool.engine.sampler import perturbed
from unspool.errors import OptionError
from unspool.noise import NoiseKey, prompt_key
from unspool.options.kinds import Unfit
from unspool.processors import PROCESSORS
from unspool.processors.base import Limit
from unspool.processors.history import TokenCounts
from unspool.processors.penalties import Seen

__all__ = ["greedy", "min_p", "repetition_penalty", "sample", "temperature", "top_k", "top_p"]


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the best token of each row; ties go to the lowest id.

    Worked example: logits (1, 3, 3, 0) --> 1.

    Args:
        logits: [..., vocab], no row all -inf.

    Returns:
        [...] int64.

    Raises:
        OptionError: if a row is all -inf, or has NaN or +inf.
    """
    return _choosable(logits).argmax(-1)


def temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divide the logits by the temperature: above 1 flattens the distribution, below 1 sharpens it, 1 is off.

    Worked example: logits (2, 1, -inf) at temperature 0.5 --> (4, 2, -inf).

    Args:
        logits: [..., vocab]
        temperature: above 0.

    Returns:
        [..., vocab] float32.

    Raises:
        OptionError: if the temperature is not above 0.
    """
    value = _checked_value("temperature", temperature)
    if not value:
        raise OptionError("temperature", temperature, "must be above 0 here", "use functional.greedy(logits)")
    return _processed("temperature", logits, lambda rows: [value] * rows)


def top_k(logits: torch.Tensor, k: int, *, min_tokens_to_keep: int = 1) -> torch.Tensor:
    """Keep the k highest logits of each row, with ties of the k-th; forbid the others.

    Worked example: logits (1, 3, 2, 2, 0) with k=2 --> (-inf, 3, 2, 2, -inf).

    Args:
        logits: [..., vocab]
        k: in tokens, at least 0; 0 keeps all.
        min_tokens_to_keep: lower limit of k, at least 1.

    Returns:
        [..., vocab] float32.

    Raises:
        OptionError: if an argument is out of range.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.4.
    """
    k = _checked_value("top_k", k)
    if not k:
        return _fresh(logits)
    least = _least(min_tokens_to_keep)
    return _processed("top_k", logits, lambda rows: [max(k, least)] * rows)


def top_p(logits: torch.Tensor, p: float, *, min_tokens_to_keep: int = 1) -> torch.Tensor:
    """Keep the smallest set of best tokens with a total probability of at least p; forbid the others.

    Worked example: probabilities (0.1, 0.6, 0.3) with p=0.8 keep tokens 1 and 2: 0.6 is less than 0.8, so the next
    best token, which crosses 0.8, stays.

    Args:
        logits: [..., vocab]
        p: in (0, 1]; 1 keeps all.
        min_tokens_to_keep: fewest tokens to keep, at least 1.

    Returns:
        [..., vocab] float32.

    Raises:
        OptionError: if an argument is out of range.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    p = _checked_value("top_p", p)
    if p >= 1.0:
        return _fresh(logits)
    return _processed("top_p", logits, _limits(p, min_tokens_to_keep))


def min_p(logits: torch.Tensor, p: float, *, min_tokens_to_keep: int = 1) -> torch.Tensor:
    """Keep the tokens at least p times as probable as the best token of the row; forbid the others.

    Worked example: probabilities (0.5, 0.3, 0.15, 0.05) with p=0.4 keep those from 0.2 up: the first two.

    Args:
        logits: [..., vocab]
        p: in [0, 1]; 0 keeps all.
        min_tokens_to_keep: fewest tokens to keep, at least 1.

    Returns:
        [..., vocab] float32.

    Raises:
        OptionError: if an argument is out of range.

    Source: Nguyen et al. 2024, "Turning Up the Heat", section 3.
    """
    p = _checked_value("min_p", p)
    if not p:
        return _fresh(logits)
    return _processed("min_p", logits, _limits(p, min_tokens_to_keep))


def repetition_penalty(
    logits: torch.Tensor, tokens: torch.Tensor | Sequence[int] | Sequence[Sequence[int]], penalty: float
) -> torch.Tensor:
    """Divide positive logits of earlier tokens by the penalty and multiply negative ones, once per distinct token.

    Worked example: logits (3, -1, 2) after tokens 0, 1, 1 with penalty=2 --> (1.5, -2, 2).

    Args:
        logits: [vocab] or [batch, vocab]
        tokens: ids so far: one sequence for [vocab], one per row for [batch, vocab], of any lengths.
        penalty: above 0; 1 is off, below 1 encourages repetition.

    Returns:
        [vocab] or [batch, vocab] float32.

    Raises:
        OptionError: if the penalty is out of range, a token id is outside the vocabulary, or the sequences do not match
            the rows.

    Source: Keskar et al. 2019, "CTRL", section 4.1, with the correction for negative logits.
    """
    strength = _checked_value("repetition_penalty", penalty)
    given: Any = tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
    sequences: list[Sequence[int]] = [given] if logits.ndim == 1 else list(given)
    if logits.ndim > 2 or len(sequences) != logits[..., 0].numel():
        allowed = f"must be one sequence per row of logits {tuple(logits.shape)}"
        raise OptionError("tokens", f"{len(sequences)} sequences", allowed, "give the logits of the last position only")
    vocab_size = logits.shape[-1]
    for token in (token for sequence in sequences for token in sequence):
        if not 0 <= token < vocab_size:
            raise OptionError("tokens", token, f"must hold token ids in [0, {vocab_size})", "leave pads out")
    return _processed(
        "repetition_penalty", logits, lambda _: [Seen(strength, TokenCounts(row, vocab_size)) for row in sequences]
    )


def sample(
    logits: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    position: int | None = None,
    prompt: Sequence[int] | torch.Tensor = (),
) -> torch.Tensor:
    """Draw one token of each row from softmax(logits).

    Without a seed, PyTorch's default generator or `generator` draws, so that `torch.manual_seed` repeats a loop. With a
    seed, a draw is a pure function of (seed, prompt, row, position, token), as everywhere in Unspool. Row r draws the
    token that output r of `lm.generate(prompt, seed=seed, num_return_sequences=...)` draws at the same position.

    Worked example: logits (0, -inf, log 3) --> token 0 with probability 1/4, token 2 with 3/4.

    Args:
        logits: [..., vocab], no row all -inf. Leading dimensions count as rows in their order.
        generator: a generator on the device of `logits`; not together with `seed`. None for PyTorch's default.
        seed: any integer; needs `position`. None for no seed.
        position: number of tokens before the drawn token; needs `seed`.
        prompt: token ids of the prompt, without the tokens drawn since; needs `seed`. If empty, the draws are those of
            `lm.generate(..., seed_prompt_tokens=0)`, the same for all prompts.

    Returns:
        [...] int64.

    Raises:
        OptionError: if a row is all -inf or has NaN or +inf, if `seed` and `generator` are both given, if only one of
            `seed` and `position` is given, or if `prompt` is given without `seed`.
    """
    if generator is not None and seed is not None:
        raise OptionError("seed", seed, "cannot be given together with `generator`", "leave out one of the two")
    if (seed is None) != (position is None):
        name, value = ("position", position) if seed is None else ("seed", seed)
        other = "seed" if seed is None else "position"
        allowed = f"is read only together with `{other}`"
        raise OptionError(name, value, allowed, "give seed=7, position=ids.shape[-1], or neither")
    prompt_ids = [int(token) for token in prompt]
    if prompt_ids and seed is None:
        raise OptionError(
            "prompt", prompt_ids, "is read only together with `seed`", "give `seed` and `position` as well"
        )
    scores = _choosable(logits)
    rows = scores.view(-1, scores.shape[-1])
    if seed is None or position is None:
        drawn = torch.multinomial(rows.softmax(-1), 1, generator=generator)[:, 0]
    else:
        named = prompt_key(prompt_ids)
        keys = [NoiseKey(seed, named, row, position) for row in range(len(rows))]
        tokens = [picked.tokens[0] for picked in perturbed(rows, keys, 1)]
        drawn = torch.tensor(tokens, dtype=torch.int64, device=rows.device)
    return drawn.view(logits.shape[:-1])


def _processed(name: str, logits: torch.Tensor, states: Callable[[int], list[Any]]) -> torch.Tensor:
    """Apply a processor to the logits. states: number of rows --> one state per row."""
    scores = _fresh(logits)
    rows = scores.view(-1, scores.shape[-1])
    return PROCESSORS[name].apply(states(len(rows)), rows, ()).view(logits.shape)


def _fresh(logits: torch.Tensor) -> torch.Tensor:
    """Return a contiguous float32 copy. --> the shape of `logits`"""
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or logits.ndim == 0 or logits.numel() == 0:
        found = f"{logits.dtype} {shape}"
        raise OptionError("logits", found, "must be a floating tensor [..., vocab]", "give model(ids).logits[:, -1]")
    return logits.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _choosable(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits in float32, or raise OptionError for a row without a finite maximum."""
    scores = _fresh(logits)
    best = scores.amax(-1)
    if not bool(best.isfinite().all()):
        found = next(value for value in best.flatten().tolist() if not math.isfinite(value))
        allowed = "must have a finite greatest value in each row"
        hint = "forbid fewer tokens" if found == -math.inf else "check the model's weights and dtype"
        raise OptionError("logits", found, allowed, hint)
    return scores


def _checked_value(option: str, given: Any) -> Any:
    """Return the normalized value of an option. None is refused, because a function that is off is not called."""
    kind = OPTIONS[option].kind
    try:
        return kind.parse(given)
    except Unfit:
        raise OptionError(option, given, kind.words, f"leave out functional.{option} to change nothing") from None


def _least(min_tokens_to_keep: int) -> int:
    if isinstance(min_tokens_to_keep, bool) or not isinstance(min_tokens_to_keep, int) or min_tokens_to_keep < 1:
        allowed = "must be an integer of at least 1"
        raise OptionError("min_tokens_to_keep", min_tokens_to_keep, allowed, "leave it out for 1")
    return min_tokens_to_keep


def _limits(value: float, min_tokens_to_keep: int) -> Callable[[int], list[Limit]]:
    state = Limit(value, _least(min_tokens_to_keep))
    return lambda rows: [state] * rows
