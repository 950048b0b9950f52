"""transformers' streamers: they are handed the prompts, then the tokens that can no longer change, then the end.

Owns: the shape and the order of what a streamer gets. Does not know: text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from unspool.errors import OptionError


@contextmanager
def streaming(streamer: Any) -> Iterator[None]:
    """Tell the streamer of the end, of a call that fails too: somebody may be waiting for it in another thread.

    Raises:
        OptionError: it is no streamer.
    """
    if streamer is None:
        yield
        return
    if not callable(getattr(streamer, "put", None)) or not callable(getattr(streamer, "end", None)):
        allowed = "must be an object with the methods put and end"
        raise OptionError("streamer", type(streamer).__name__, allowed, "such as transformers.TextStreamer(tokenizer)")
    try:
        yield
    except BaseException:
        with suppress(Exception):
            streamer.end()
        raise
    streamer.end()


class Columns:
    """Hands tokens to a streamer as transformers does: the next token of each output in one tensor.

    A column goes as soon as every output has a token for it; one that has ended has pads.

    Args:
        streamer: has a method put.
        outputs: how many.
        pad_token_id: what stands behind an end.
    """

    def __init__(self, streamer: Any, outputs: int, pad_token_id: int) -> None:
        self._streamer, self._pad = streamer, pad_token_id
        self._waiting: list[deque[int]] = [deque() for _ in range(outputs)]
        self._ended = [False] * outputs

    def put(self, output: int, tokens: Sequence[int], *, ended: bool) -> None:
        """Add tokens of an output."""
        self._waiting[output].extend(tokens)
        self._ended[output] |= ended
        while any(self._waiting) and all(
            waiting or ended for waiting, ended in zip(self._waiting, self._ended, strict=True)
        ):
            column = [waiting.popleft() if waiting else self._pad for waiting in self._waiting]
            self._streamer.put(torch.tensor(column, device="cpu"))
