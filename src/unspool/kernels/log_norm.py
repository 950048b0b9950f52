"""The logsumexp of rows of scores, in one call.

Owns the compiled loop. Does not know processors.
"""

from __future__ import annotations

import torch

from unspool.kernels.library import kernels


def log_norm(scores: torch.Tensor) -> torch.Tensor | None:
    """Return each row's logsumexp: -inf if all scores are, NaN if one is.

    A row has the same bits beside any other rows, and on all CPUs of a kind.

    Args:
        scores: [rows, vocab].

    Returns:
        [rows], or None if the kernels cannot be used here: they read float32 on the CPU.
    """
    library = kernels()
    is_plain = scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.stride(1) == 1
    if library is None or not is_plain or scores.requires_grad:
        return None
    found = scores.new_empty(len(scores))
    (rows, vocab), stride = scores.shape, scores.stride(0)
    threads = torch.get_num_threads()
    library.functions.unspool_log_norm(scores.data_ptr(), found.data_ptr(), rows, vocab, stride, threads)
    return found
