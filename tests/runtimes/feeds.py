"""Feeds and prompts that tests of runtimes share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tests.tiny_models import VOCAB_SIZE
from unspool.types import Feed, Seq


def feed(seq: Seq, tokens: Sequence[int], **options: Any) -> Feed:
    """Return a feed that asks for the row of every token."""
    return Feed(seq=seq, tokens=tokens, **{"asked": tuple(range(len(tokens))), **options})


def last(seq: Seq, tokens: Sequence[int], **options: Any) -> Feed:
    """Return a feed that asks for the row of the last token."""
    return feed(seq, tokens, **{"asked": (len(tokens) - 1,), **options})


def prompts(rng: random.Random, lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts of random tokens, without special ones."""
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]
