"""Where a request's seed comes from when the caller gives none. Imports nothing of ours."""

from __future__ import annotations

import random
import secrets

_seeded: random.Random | None = None


def set_seed(seed: int | None) -> None:
    """Make all later requests without a `seed` reproducible, as a sequence, in the order they are made.

    For those used to a global seed; `seed=` in a call is better, since it does not depend on what was called before.

    Args:
        seed: any integer; None returns to fresh entropy.
    """
    global _seeded
    _seeded = None if seed is None else random.Random(seed)


def shared_seed() -> int:
    """Return the next seed of the sequence that `set_seed` began, else one of torch's default generator.

    So doors made after transformers' repeat under `torch.manual_seed` and `transformers.set_seed`, and under ours.
    """
    if _seeded is not None:
        return fresh_seed()
    import torch

    return int(torch.randint(2**63 - 1, (), device="cpu"))


def fresh_seed() -> int:
    """Return a seed in [0, 2**32): the next of the sequence that `set_seed` began, else fresh entropy."""
    return secrets.randbits(32) if _seeded is None else _seeded.getrandbits(32)
