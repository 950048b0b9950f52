"""From raw logits to scores: the processors of many requests applied to many rows at once.

Owns the order of processors in a mixed batch. Knows no strategy and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from unspool.errors import StrategyError
from unspool.processors import DEFAULT_ORDER
from unspool.processors.rows import FORBIDDEN, log_norm
from unspool.protocols import Processor, RowKey
from unspool.types import Distribution


class RowJob(NamedTuple):
    """One row to process: its chain of processors with their states, in the request's order of names.

    log_probs: whether scores start as log-probabilities. read: [vocab], what a readout made of the row, in its place.
    """

    chain: Sequence[Processor]
    states: Sequence[Any]
    order: tuple[str, ...] | None
    log_probs: bool
    key: RowKey
    read: torch.Tensor | None = None


class Scored(NamedTuple):
    """Rows before and after the processors.

    logits: [rows, vocab], the model's own. norm: [rows], their logsumexp. scores: [rows, vocab], after the processors,
    in each row's space. score_norm: [rows], their logsumexp.
    """

    logits: torch.Tensor
    norm: torch.Tensor
    scores: torch.Tensor
    score_norm: torch.Tensor


def process(logits: torch.Tensor, jobs: Sequence[RowJob]) -> Scored:
    """Apply each row's processors. logits: [rows, vocab] float32, left unchanged."""
    norm = log_norm(logits)  # --> [rows]
    base, base_norm = logits, norm
    read = [row for row, job in enumerate(jobs) if job.read is not None]
    if read:
        base, base_norm = logits.clone(), norm.clone()
        base[read] = torch.stack([job.read for job in jobs if job.read is not None])
        base_norm[read] = log_norm(base[read])
    beams = [row for row, job in enumerate(jobs) if job.log_probs]
    if not beams and not any(job.chain for job in jobs):
        return Scored(logits, norm, base, base_norm)
    shift = torch.zeros_like(norm)
    shift[beams] = base_norm[beams]
    scores = base - shift[:, None]
    for rows in _by_order(jobs):
        scores = _apply_group(scores, jobs, rows)
    return Scored(logits, norm, scores, log_norm(scores))


def _by_order(jobs: Sequence[RowJob]) -> list[list[int]]:
    """Return the rows of jobs that have processors, grouped by the order of names they follow."""
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for row, job in enumerate(jobs):
        if job.chain:
            groups.setdefault(job.order, []).append(row)
    return list(groups.values())


def _apply_group(scores: torch.Tensor, jobs: Sequence[RowJob], rows: Sequence[int]) -> torch.Tensor:
    """Apply the processors of rows that share one order, each processor once for all rows that have it on."""
    names = jobs[rows[0]].order or DEFAULT_ORDER
    stages: dict[tuple[int, int, int], tuple[Processor, list[int], list[Any]]] = {}
    for row in rows:
        users = 0
        for processor, state in zip(jobs[row].chain, jobs[row].states, strict=True):
            known = processor.name in names
            rank = names.index(processor.name if known else "user")
            users += not known
            stage = stages.setdefault((rank, 0 if known else users, id(processor)), (processor, [], []))
            stage[1].append(row)
            stage[2].append(state)
    for _, (processor, members, states) in sorted(stages.items(), key=lambda item: item[0]):
        keys = [jobs[row].key for row in members]
        if len(members) == len(scores):
            scores = _applied(processor, states, scores, keys)
        else:
            index = torch.tensor(members, device=scores.device)
            scores[index] = _applied(processor, states, scores[index], keys)
    return scores


def _applied(processor: Processor, states: Sequence[Any], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
    """Return what a processor makes of rows; one of the user's own may return anything."""
    shape = scores.shape
    changed: Any = processor.apply(states, scores, keys)
    if isinstance(changed, torch.Tensor) and changed.shape == shape:
        return changed
    got = f"a tensor of shape {tuple(changed.shape)}" if isinstance(changed, torch.Tensor) else repr(changed)
    raise StrategyError(f"the processor {processor.name} must return scores of shape {tuple(shape)}, got {got}")


def distribution(logits: torch.Tensor, job: RowJob) -> Distribution:
    """Return one row's exact distribution and which processor cut which token. logits: [vocab]."""
    logprobs = logits - log_norm(logits[None])
    base = logits if job.read is None else job.read
    scores = (base - log_norm(base[None]) if job.log_probs else base.clone())[None]
    cut_by = torch.full_like(scores[0], -1, dtype=torch.int64)
    for index, (processor, state) in enumerate(zip(job.chain, job.states, strict=True)):
        allowed = scores[0] > FORBIDDEN
        scores = _applied(processor, [state], scores, [job.key])
        cut_by[allowed & (scores[0] == FORBIDDEN)] = index
        cut_by[scores[0] > FORBIDDEN] = -1
    names = tuple(processor.name for processor in job.chain)
    return Distribution(logprobs.cpu(), scores[0].cpu(), cut_by.cpu(), names)
