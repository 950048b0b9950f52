"""The logsumexp and the greatest score of rows of scores, in one call.

Owns the compiled loop. Does not know processors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from unspool.kernels.library import kernels


class LogNorm(NamedTuple):
    """Figures of rows of scores. Each: [rows, 1]

    norm: logsumexp; -inf if all scores are, NaN if one is. greatest: the greatest score; NaN is not counted. ids:
    int64, its token id, the lowest one of equals.
    """

    norm: torch.Tensor
    greatest: torch.Tensor
    ids: torch.Tensor


def log_norm(scores: torch.Tensor) -> LogNorm | None:
    """Return the figures of each row.

    A row has the same bits beside any other rows, and on all CPUs of a kind.

    Args:
        scores: [rows, vocab].

    Returns:
        None if the kernels cannot be used here: they read float32 on the CPU.
    """
    library = kernels()
    is_plain = scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.stride(1) == 1
    if library is None or not is_plain or scores.requires_grad:
        return None
    (rows, vocab), stride = scores.shape, scores.stride(0)
    norm, greatest = (torch.empty(rows, 1, dtype=torch.float32, device="cpu") for _ in range(2))
    ids = torch.empty(rows, 1, dtype=torch.int64, device="cpu")
    tensors, threads = (scores, norm, greatest, ids), torch.get_num_threads()
    library.functions.unspool_log_norm(*[each.data_ptr() for each in tensors], rows, vocab, stride, threads)
    return LogNorm(norm, greatest, ids)
