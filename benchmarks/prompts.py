"""The prompts of the models: random token ids, the same in every run. Each round turns them (`Work.turned`)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.checkpoints import Checkpoint

TALE_PROMPT = (1, 2153, 656, 260, 515, 444, 1026, 260, 503, 271, 260, 1096, 13, 271, 357, 341)
"""For the embedded model: Once upon a time there lived a king and a queen, and they had"""

_MIXED = (3, 5, 8, 12, 17, 23, 30, 38, 47, 57, 68, 80, 93, 107, 122, 138)


def prompt(checkpoint: Checkpoint, length: int, *, number: int = 0) -> tuple[int, ...]:
    """Return a prompt of that length; another number gives another one."""
    draw = random.Random(f"{number} {length}")
    return tuple(draw.randrange(1, checkpoint.vocab_size) for _ in range(length))


def mixed_prompts(checkpoint: Checkpoint, count: int) -> tuple[tuple[int, ...], ...]:
    """Return prompts of 3 to 138 tokens, short and long ones in turn as chance will have it."""
    lengths: Sequence[int] = _MIXED * (-(-count // len(_MIXED)))
    mixed = random.Random(count).sample(lengths, count)
    return tuple(prompt(checkpoint, length, number=number) for number, length in enumerate(mixed))
