"""Masks of tokens, one bit per token, over scores.

Owns: the compiled loop, and the same with PyTorch's operators. Does not know: grammars.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from unspool.kernels.library import kernels

_SCORES_PER_THREAD: Final = 1 << 22
"""Scores for each thread, at least. One core masks them in 1 ms, and waiting for a busy core can take longer."""


def mask_scores(scores: torch.Tensor, masks: NDArray[np.int32]) -> torch.Tensor:
    """Return the scores, with -inf in place for each token that its row's mask forbids.

    Args:
        scores: [rows, vocab], without a gradient.
        masks: [rows, words], contiguous; one bit per token, the lowest bit first, 1 if the token is allowed. Tokens
            without a bit are forbidden.
    """
    library = kernels()
    is_plain = scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.stride(1) == 1
    if library is None or not is_plain:
        allowed = unpacked(masks, scores.shape[1]).to(scores.device)
        return torch.where(allowed, scores, scores.new_tensor(-torch.inf), out=scores)
    assert masks.flags.c_contiguous and len(masks) == len(scores), "one contiguous mask per row"
    (rows, vocab), words = scores.shape, masks.shape[1]
    threads = max(1, min(torch.get_num_threads(), rows * vocab // _SCORES_PER_THREAD))
    library.functions.unspool_mask(scores.data_ptr(), masks.ctypes.data, rows, vocab, scores.stride(0), words, threads)
    return scores


def unpacked(masks: NDArray[np.int32], vocab_size: int) -> torch.Tensor:
    """Return masks of one bit per token as booleans. masks: [..., words] --> [..., vocab]"""
    bits = np.unpackbits(masks.view(np.uint8), axis=-1, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)
