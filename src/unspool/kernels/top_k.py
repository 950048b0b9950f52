"""The best scores and the logsumexp of rows of scores, in one call.

Owns the compiled loops. Does not know processors.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from unspool.kernels.library import Kernels, kernels

LONGEST_LIST: Final = 80
"""Most scores that `top_k` lists. PyTorch makes longer lists at least as fast. Mirrored in kernels.h."""


class Best(NamedTuple):
    """The best scores of each row, best first; of equal scores the lowest id first. Each: [rows, k]

    NaN is never listed. If fewer than k scores are above -inf, other ids follow, with -inf. ids: int64.
    """

    values: torch.Tensor
    ids: torch.Tensor


def top_k(scores: torch.Tensor, k: int) -> Best | None:
    """Return the k best scores of each row.

    Args:
        scores: [rows, vocab].
        k: 1 to vocab.

    Returns:
        None if the kernels cannot be used here: they read float32 on the CPU, and list at most `LONGEST_LIST` scores.
    """
    library = _library(scores) if k <= LONGEST_LIST else None
    return None if library is None else _listed(library, scores, k, None)


def log_norm(scores: torch.Tensor) -> tuple[torch.Tensor, Best] | None:
    """Return each row's logsumexp, [rows, 1], and its best score.

    The logsumexp is -inf if all scores are, NaN if one is. A row has the same bits beside any other rows, and on all
    CPUs of a kind.

    Args:
        scores: [rows, vocab].

    Returns:
        None if the kernels cannot be used here: they read float32 on the CPU.
    """
    library = _library(scores)
    if library is None:
        return None
    norm = torch.empty(scores.shape[0], 1, dtype=torch.float32, device="cpu")
    return norm, _listed(library, scores, 1, norm)


def _library(scores: torch.Tensor) -> Kernels | None:
    """Return the kernels if they can read these scores."""
    is_plain = scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.stride(1) == 1
    return kernels() if is_plain and not scores.requires_grad else None


def _listed(library: Kernels, scores: torch.Tensor, k: int, norm: torch.Tensor | None) -> Best:
    """List the best scores, and write the logsumexp to `norm` if it is given."""
    (rows, vocab), stride = scores.shape, scores.stride(0)
    values = torch.empty(rows, k, dtype=torch.float32, device="cpu")
    ids = torch.empty(rows, k, dtype=torch.int64, device="cpu")
    written = None if norm is None else norm.data_ptr()
    addresses = scores.data_ptr(), written, values.data_ptr(), ids.data_ptr()
    library.functions.unspool_top_k(*addresses, rows, vocab, stride, k, torch.get_num_threads())
    return Best(values, ids)
