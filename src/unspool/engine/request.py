"""Requests to the engine: one prompt and all options of its decoding. Knows neither text nor models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unspool.config import GenerationConfig
from unspool.noise import prompt_key, token_bytes
from unspool.protocols import Criterion, Processor, Runtime, Strategy
from unspool.types import Source

if TYPE_CHECKING:
    from unspool.grammars import CompiledGrammar

_DETERMINED = ("input_ids", "attention_mask", "encoder_outputs")
"""Inputs that the token ids determine."""


class LockstepGroup:
    """The identity of requests that run in lockstep: they start together, and their turns are answered together.

    Submit them one after the other, without an engine step in between.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with everything that determines its tokens.

    prompt: token ids, at least one; the decoder's prompt if the model has an encoder. config: resolved. seed: any
    integer. strategy: the decoding strategy.
    processors: the user's logits processors, applied in this order at the position "user". criteria: the user's
    stopping criteria, asked in this order; end-of-sequence tokens, length and time come on top. source: input of the
    encoder. assistant: the draft model's runtime.
    negative_prompt: token ids of the negative prompt for `guidance_scale`; None without guidance. negative_source:
    input of the encoder for it. tentative: True for Tentative events. trace: True for a trace. lockstep_group: the
    requests it runs in lockstep with. grammar: the formal language of the output; None for any text. cache_salt: part
    of the identity of cached prefixes; requests with different salts share none.
    """

    prompt: tuple[int, ...]
    config: GenerationConfig
    seed: int
    strategy: Strategy
    processors: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    source: Source | None = None
    assistant: Runtime | None = None
    negative_prompt: tuple[int, ...] | None = None
    negative_source: Source | None = None
    tentative: bool = False
    trace: bool = False
    lockstep_group: LockstepGroup | None = None
    grammar: CompiledGrammar | None = None
    cache_salt: str = ""


def prompt_key_of(request: Request) -> int:
    """Return the prompt's part of the noise key: a hash of the prompt, or of its first `seed_prompt_tokens` tokens.

    The hash always includes the encoder's input. It excludes the negative prompt, so that different guidance scales can
    be compared under the same noise.
    """
    return prompt_key(request.prompt[: request.config.seed_prompt_tokens], _source_parts(request.source))


def _source_parts(source: Source | None) -> Iterator[bytes]:
    """Yield the inputs beside the prompt as bytes: known token ids, then the tensors in the order of their names.

    Left out are ids, masks, and states that the token ids determine. The tensors of a batch are left out too, because a
    request must not depend on the others.
    """
    if source is None:
        return
    if source.token_ids:
        yield token_bytes(source.token_ids)
    if len(source.inputs.get("attention_mask", ())) > 1:
        return
    known = _DETERMINED if source.token_ids else ()
    for name, value in sorted(source.inputs.items()):
        if isinstance(value, torch.Tensor) and name not in known:
            yield name.encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
