"""Default seeds of requests without `seed`. Does not import other modules of unspool."""

from __future__ import annotations

import random
import secrets

_seeded: random.Random | None = None


def set_seed(seed: int | None) -> None:
    """Set the global seed: all later requests without `seed` are reproducible, as a sequence in the order of calls.

    Prefer `seed=` in a call, because its result does not depend on earlier calls.

    Args:
        seed: any integer; None returns to fresh entropy.
    """
    global _seeded
    _seeded = None if seed is None else random.Random(seed)


def shared_seed() -> int:
    """Return the next seed of the sequence that `set_seed` began, else a seed of torch's default generator.

    The drop-in replacements for transformers use it, so `torch.manual_seed`, `transformers.set_seed` and `set_seed` all
    make them reproducible.
    """
    if _seeded is not None:
        return fresh_seed()
    import torch

    return int(torch.randint(2**63 - 1, (), device="cpu"))


def fresh_seed() -> int:
    """Return a seed in [0, 2**32): the next of the sequence that `set_seed` began, else fresh entropy."""
    return secrets.randbits(32) if _seeded is None else _seeded.getrandbits(32)
