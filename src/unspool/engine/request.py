"""What is submitted to the engine: one prompt, decoded one way. Knows no text and no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from unspool.config import GenerationConfig
from unspool.noise import prompt_key, token_bytes
from unspool.protocols import Criterion, Processor, Runtime, Strategy
from unspool.types import Source


class LockstepGroup:
    """Names requests that are admitted together, and whose turns are answered together, so that one call sees them all.

    They are queued one after the other, before the engine's next step.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with everything that decides its tokens.

    prompt: token ids, at least one; for models with an encoder, the decoder's. source: what the encoder reads.
    config: resolved. seed: any integer. strategy: the conversation to hold.
    processors: the user's own, applied in this order at the place called "user". criteria: reasons to stop besides
    end-of-sequence tokens, length and time, asked in this order. assistant: the draft model.
    negative_prompt: token ids of what `guidance_scale` moves away from; given wherever guidance is on.
    negative_source: what the encoder reads there. tentative, trace: whether Tentative events are wanted, and a trace.
    gang: the requests it keeps in step with.
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


def prompt_key_of(request: Request) -> int:
    """Return the name of the request's prompt in its noise: the prompt, or its leading `seed_prompt_tokens`.

    The encoder's input always counts. The negative prompt does not, so that values of guidance can be compared under
    the same draws.
    """
    return prompt_key(request.prompt[: request.config.seed_prompt_tokens], _source_parts(request.source))


def _source_parts(source: Source | None) -> Iterator[bytes]:
    """Yield the encoder's input as bytes: token ids if it is text, else its tensors in the order of their names."""
    if source is None:
        return
    if source.token_ids:
        yield token_bytes(source.token_ids)
        return
    for name, value in sorted(source.inputs.items()):
        yield name.encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
