"""What is submitted to the engine: one prompt, decoded one way. Knows no text and no model."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.config import GenerationConfig
from unspool.protocols import Criterion, Processor, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with everything that decides its tokens.

    prompt: token ids, at least one. config: resolved. seed: any integer. strategy: the conversation to hold.
    processors: the user's own, applied in this order at the place called "user". criteria: reasons to stop besides
    end-of-sequence tokens, length and time, asked in this order.
    """

    prompt: tuple[int, ...]
    config: GenerationConfig
    seed: int
    strategy: Strategy
    processors: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
