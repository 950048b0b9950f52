"""The last token of each row of a batch with a mask that hides columns behind tokens.

transformers reads the logits of the last column of a batch. It counts positions on from that column, and repeats its
token type. If a mask hides that column, all three belong to the last token under the mask. Knows no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

_CONTINUED: Final = ("position_ids", "token_type_ids", "mm_token_type_ids")
"""Arguments that transformers continues from their last column."""


def last_tokens(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the column of each row's last token, counted from the right end of the batch. --> [rows], -1 and below

    Args:
        arguments: of a decoder's first forward.

    Returns:
        None if the mask shows the last column of every row, or without a mask [rows, width].
    """
    mask = arguments.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or bool(mask[:, -1].all()):
        return None
    return -1 - mask.bool().flip(1).int().argmax(dim=1)


def with_last_tokens(arguments: Mapping[str, Any], last: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a first forward that computes the logits of all columns.

    The last column has the position and the token type of the row's last token, because later tokens follow it.

    Args:
        last: of `last_tokens`.
    """
    changed = dict(arguments)
    if "logits_to_keep" in changed:
        changed["logits_to_keep"] = 0
    for name in _CONTINUED:
        given = changed.get(name)
        if isinstance(given, torch.Tensor) and given.ndim > 1 and given.shape[-2] == len(last):
            rows, columns = torch.arange(len(last), device=given.device), last.to(given.device)
            changed[name] = given.clone()
            changed[name][..., -1] = given[..., rows, columns]
    return changed


def logits_of(logits: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """Return a copy of the logits of each row's last token. --> [rows, vocab] float32

    Args:
        logits: [rows, columns, vocab].
        last: of `last_tokens`; None for the last column.
    """
    if last is None:
        return logits[:, -1].to(torch.float32, copy=True)
    columns = last.to(logits.device).clamp(min=-logits.shape[1])
    return logits[torch.arange(len(logits), device=logits.device), columns].to(torch.float32, copy=True)
