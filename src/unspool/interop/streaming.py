"""transformers' streamers: they get the prompts, then the committed tokens, then the end.

Owns: the shape and the order of a streamer's tensors. Does not know: text.
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
    """Call the streamer's `end` after the call, also after an error: another thread can be waiting for it.

    Raises:
        OptionError: if it is not a streamer.
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
    """Sends tokens to a streamer as transformers does: one tensor per step with the next token of each output.

    A column is sent as soon as every output has a token for it. An ended output has pads.

    Args:
        streamer: has a method put.
        outputs: their number.
        pad_token_id: fills columns of ended outputs.
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
