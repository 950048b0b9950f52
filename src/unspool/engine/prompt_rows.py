"""Answers asks about positions inside the prompt directly after their pass, so that their logits are not kept.

A prompt of 1,000 tokens would otherwise keep 1,000 rows of logits until its last pass: 200 MB for GPT-2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from unspool.engine.logits import PLAIN, process
from unspool.engine.row_queries import RowQuery, find
from unspool.processors.rows import indices
from unspool.tuning import PROMPT_LOGITS_PER_CALL
from unspool.types import Ask, Candidate, Row


class PromptRow(NamedTuple):
    """The answer to an ask about a position inside the prompt. norm: logsumexp of the position's logits."""

    row: Row
    norm: float


def prompt_rows(logits: torch.Tensor, asked: Sequence[tuple[Ask, int]]) -> Iterator[PromptRow]:
    """Yield the answer to each ask, a few rows per call: their intermediate numbers fit into the CPU cache.

    Args:
        logits: [rows, vocab], of one pass.
        asked: `Score` or `Top` asks, each with its row, in ascending order of rows.
    """
    step = max(PROMPT_LOGITS_PER_CALL // logits.shape[1], 1)
    rows = list(dict.fromkeys(row for _, row in asked))
    start = 0
    for first in range(0, len(rows), step):
        line_of = {row: line for line, row in enumerate(rows[first : first + step])}
        stop = start
        while stop < len(asked) and asked[stop][1] in line_of:
            stop += 1
        queries = [RowQuery(ask, line_of[row]) for ask, row in asked[start:stop]]
        yield from _answered(_part(logits, list(line_of)), queries)
        start = stop


def _part(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return the given rows; neighbors need no copy."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return logits[rows[0] : rows[-1] + 1]
    return logits[indices(rows, logits.device)]


def _answered(logits: torch.Tensor, queries: Sequence[RowQuery]) -> Iterator[PromptRow]:
    """Yield the answers to queries about all rows of `logits`."""
    jobs = [PLAIN] * len(logits)  # processors apply to output positions only
    result = find(queries, jobs, process(logits, jobs), {})
    for query, found in zip(queries, result.found, strict=True):
        norm = result.norms[query.row]
        pairs = zip(found.tokens, found.logits, strict=True)
        candidates = tuple(Candidate(token, logit - norm, logit - norm, None) for token, logit in pairs)
        yield PromptRow(Row(candidates, log_norm=0.0, ranks=found.ranks), norm)
