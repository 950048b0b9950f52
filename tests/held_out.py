"""How well a model foretells the tales that the embedded one was never trained on."""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from unspool import LanguageModel
from unspool.types import Feed

_TALES = Path(__file__).resolve().parent.parent / "tools" / "corpus" / "tales-valid.txt.xz"
_BOUNDARY = "<|endoftext|>\n"


@cache
def tales() -> tuple[str, ...]:
    """Return the 32 held-out tales, whole."""
    text = lzma.decompress(_TALES.read_bytes()).decode("ascii")
    return tuple(tale.strip("\n") for tale in text.split(_BOUNDARY) if tale.strip())


def perplexity(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Return exp of the mean negative log-probability of every token, the end of each text included.

    A token is scored behind at least half of what the model holds, or else behind all that stands before it.
    """
    nats, count, longest = 0.0, 0, lm.info.max_length or 1024
    for text in texts:
        ids = lm.tokenizer(text, verbose=False)["input_ids"] + [lm.tokenizer.eos_token_id]
        scored = 1
        while scored < len(ids):
            begin = max(0, scored - longest // 2)
            window = ids[begin : begin + longest]
            new = window[scored - begin :]
            nats -= _log_probabilities(lm, window, len(new)).gather(1, torch.tensor(new)[:, None]).sum().item()
            count, scored = count + len(new), begin + len(window)
    return math.exp(nats / count)


def _log_probabilities(lm: LanguageModel, window: Sequence[int], count: int) -> torch.Tensor:
    """Return what the model foretells for the last `count` tokens. --> [count, vocab]"""
    read = window[:-1]
    feed = Feed(seq=0, tokens=read, asked=tuple(range(len(read) - count, len(read))))
    rows = lm.runtime.forward([feed]).logits
    lm.runtime.release(0)
    return rows.double().log_softmax(-1)
