"""Applies the logits processors of many requests to many rows at once: from raw logits to scores.

Owns the order of processors in a mixed batch. Knows neither strategies nor text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from unspool.errors import StrategyError
from unspool.kernels.top_k import Best
from unspool.processors import DEFAULT_ORDER
from unspool.processors.rows import FORBIDDEN, best_of_rows, indices, log_norm, log_norm_and_best, rows_of
from unspool.protocols import Processor, RowKey
from unspool.types import Distribution


class RowContext(NamedTuple):
    """How one row is processed: its processors and their states, in the order of names that the request gives.

    log_probs: True if scores start as log-probabilities. read: [vocab], logits that replace the row's own (guidance,
    DoLa); None for the row's own.
    """

    chain: Sequence[Processor]
    states: Sequence[Any]
    order: tuple[str, ...] | None
    log_probs: bool
    key: RowKey
    read: torch.Tensor | None = None


PLAIN: Final = RowContext((), (), None, False, RowKey(0, 0, 0, 0, ()))
PLAIN_LOG_PROBS: Final = PLAIN._replace(log_probs=True)
"""Contexts of rows without processors: of logits, and of log-probabilities."""


class Block(NamedTuple):
    """Some of the rows, before and after the processors.

    rows: their indices, one per line. logits: [lines, vocab], of the model. scores: [lines, vocab]; the same tensor as
    `logits` if no processor acts. log_norm_offset: [lines, 1], to be subtracted from the scores; None for 0. norm:
    [lines, 1], logsumexp of `scores`; None if it follows from that of the logits. best: of each line of `scores`; None
    if it is not known.
    """

    rows: list[int]
    logits: torch.Tensor
    scores: torch.Tensor
    log_norm_offset: torch.Tensor | None = None
    norm: torch.Tensor | None = None
    best: Best | None = None


class Scored(NamedTuple):
    """Rows before and after the processors.

    logits: [rows, vocab], of the model. norm: [rows, 1], their logsumexp. blocks: first the rows without processors,
    then the rows with processors; at least one block.
    """

    logits: torch.Tensor
    norm: torch.Tensor
    blocks: list[Block]


def process(logits: torch.Tensor, jobs: Sequence[RowContext]) -> Scored:
    """Apply each row's processors. logits: [rows, vocab], not modified."""
    logits = _plain_floats(logits)
    norm, best = log_norm_and_best(logits)
    changed = [row for row, job in enumerate(jobs) if job.chain or job.read is not None]
    if not changed:
        return Scored(logits, norm, [_plain(logits, norm, best, list(range(len(jobs))), jobs)])
    plain = [row for row, job in enumerate(jobs) if not job.chain and job.read is None]
    blocks = []
    if plain:
        plain_best = best_of_rows(best, plain)
        blocks.append(_plain(rows_of(logits, plain), rows_of(norm, plain), plain_best, plain, jobs))
    own, own_norm = rows_of(logits, changed), rows_of(norm, changed)
    scores = _processed(own, own_norm, [jobs[row] for row in changed])
    score_norm, best = log_norm_and_best(scores)
    return Scored(logits, norm, [*blocks, Block(changed, own, scores, norm=score_norm, best=best)])


def processed(logits: torch.Tensor, jobs: Sequence[RowContext]) -> torch.Tensor:
    """Return the scores only. logits: [rows, vocab], not modified. --> [rows, vocab] float32"""
    logits = _plain_floats(logits)
    return _processed(logits, log_norm(logits)[:, None], jobs)


def _plain_floats(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().float() if logits.requires_grad or logits.dtype != torch.float32 else logits


def _plain(
    logits: torch.Tensor, norm: torch.Tensor, best: Best | None, rows: list[int], jobs: Sequence[RowContext]
) -> Block:
    """Return the block of rows without processors: their scores are logits or log-probabilities."""
    beams = [line for line, row in enumerate(rows) if jobs[row].log_probs]
    if not beams:
        return Block(rows, logits, logits, best=best)
    return Block(rows, logits, logits, norm if len(beams) == len(rows) else _log_norm_offset(norm, beams))


def _log_norm_offset(norm: torch.Tensor, beams: Sequence[int]) -> torch.Tensor:
    """Return the offset that turns the rows `beams` into log-probabilities, and 0 for other rows. --> [rows, 1]"""
    index = indices(beams, norm.device)
    return torch.zeros_like(norm).index_copy_(0, index, norm[index])


def _processed(logits: torch.Tensor, norm: torch.Tensor, jobs: Sequence[RowContext]) -> torch.Tensor:
    """Return the processed scores. norm: [rows, 1], logsumexp of the logits. --> [rows, vocab]"""
    scores = logits.clone()
    read = [row for row, job in enumerate(jobs) if job.read is not None]
    if read:
        index = indices(read, logits.device)
        scores[index] = torch.stack([job.read for job in jobs if job.read is not None])
        norm = norm.index_copy(0, index, log_norm(scores[index])[:, None])
    beams = [row for row, job in enumerate(jobs) if job.log_probs]
    if beams:
        scores -= _log_norm_offset(norm, beams)
    for rows in _by_order(jobs):
        scores = _apply_group(scores, jobs, rows)
    return scores


def _by_order(jobs: Sequence[RowContext]) -> list[list[int]]:
    """Return the rows that have processors, grouped by their order of names."""
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for row, job in enumerate(jobs):
        if job.chain:
            groups.setdefault(job.order, []).append(row)
    return list(groups.values())


def _apply_group(scores: torch.Tensor, jobs: Sequence[RowContext], rows: Sequence[int]) -> torch.Tensor:
    """Apply the processors of rows that share one order; each processor runs once for all rows that enable it."""
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
        if len(members) == scores.shape[0]:
            scores = _applied(processor, states, scores, keys)
        else:
            index = indices(members, scores.device)
            scores[index] = _applied(processor, states, scores[index], keys)
    return scores


def support_of(chain: Sequence[Processor], states: Sequence[Any], vocab_size: int) -> torch.Tensor | None:
    """Return the tokens that a branch's processors allow, whatever the scores; None for all. --> [vocab] bool"""
    allowed: torch.Tensor | None = None
    for processor, state in zip(chain, states, strict=True):
        # A user's processor can lack the base class, and with it this ability.
        own = processor.support(state, vocab_size) if isinstance(processor, Processor) else None
        if own is not None:
            allowed = own if allowed is None else allowed & own
    return allowed


def _applied(processor: Processor, states: Sequence[Any], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
    """Return the scores after one processor.

    Raises:
        StrategyError: if a user's processor returns anything but floating-point scores of the same shape.
    """
    shape = scores.shape
    changed: Any = processor.apply(states, scores, keys)
    if isinstance(changed, torch.Tensor) and changed.shape == shape and changed.is_floating_point():
        return (changed.detach() if changed.requires_grad else changed).to(scores)
    got = f"{changed.dtype} of shape {tuple(changed.shape)}" if isinstance(changed, torch.Tensor) else repr(changed)
    raise StrategyError(
        f"the processor {processor.name} must return floating-point scores of shape {tuple(shape)} (position "
        f"{keys[0].position}), got {got}"
    )


def culprit(logits: torch.Tensor, job: RowContext) -> str:
    """Return the name of the first processor that turns finite logits into no distribution. logits: [vocab]"""
    if len(job.chain) == 1:
        return job.chain[0].name
    base = logits if job.read is None else job.read
    scores = (base - log_norm(base[None]) if job.log_probs else base.clone())[None]
    for processor, state in zip(job.chain, job.states, strict=True):
        scores = _applied(processor, [state], scores, [job.key])
        if not bool((scores < torch.inf).all()) or bool((scores == FORBIDDEN).all()):
            return processor.name
    return "processors"


def distribution(logits: torch.Tensor, job: RowContext) -> Distribution:
    """Return one row's exact distribution, and the processor that cut each token (`cut_by`). logits: [vocab]"""
    logprobs = logits.double().log_softmax(-1)
    base = logits if job.read is None else job.read
    scores = (base - log_norm(base[None]) if job.log_probs else base.clone())[None]
    cut_by = torch.full_like(scores[0], -1, dtype=torch.int64)
    for index, (processor, state) in enumerate(zip(job.chain, job.states, strict=True)):
        allowed = scores[0] > FORBIDDEN
        scores = _applied(processor, [state], scores, [job.key])
        cut_by[allowed & (scores[0] == FORBIDDEN)] = index
        cut_by[scores[0] > FORBIDDEN] = -1
    names = tuple(processor.name for processor in job.chain)
    # Processors work in float32. Without processors, scores must equal the exact log-probabilities.
    exact = base.double().log_softmax(-1) if job.log_probs and not job.chain else scores[0].double()
    return Distribution(logprobs.cpu(), exact.cpu(), cut_by.cpu(), names)
