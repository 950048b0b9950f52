"""Answers the asks of a pass from its logits, with one batched call per kind of ask and one device-to-host transfer.

Groups asks of the same kind and size about the same block of rows. Two cases need a transfer of their own: a row with
ties beyond its top-k list, and a full distribution. Knows neither requests nor strategies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from unspool.engine import sampler
from unspool.engine.logits import Block, RowContext, Scored, distribution
from unspool.engine.sampler import TopKList, resolve_ties
from unspool.engine.transfer import DeviceToHost, Transfer
from unspool.noise import NoiseKey
from unspool.processors.rows import best_of_rows, figures_of, indices, rows_of
from unspool.types import Ask, Distribution, FullDistribution, GumbelTopK, Score, Top


class RowQuery(NamedTuple):
    """An ask about logits, the index of its row, and its noise key; None if it is not a draw."""

    ask: Ask
    row: int
    noise: NoiseKey | None = None


class RowResult(NamedTuple):
    """The answer to one ask: tokens, best or first drawn first, with their raw logits and scores.

    perturbed: score + noise of each token if they were drawn; else empty. distribution: for FullDistribution; else
    None. ranks: of each token if they were asked for; else empty.
    """

    tokens: Sequence[int]
    logits: Sequence[float]
    scores: Sequence[float]
    perturbed: Sequence[float] = ()
    distribution: Distribution | None = None
    ranks: tuple[int, ...] = ()


class BatchResult(NamedTuple):
    """The answers to all queries about a pass.

    found: one per query. norms, score_norms: by row, logsumexp of the logits and of the scores. top_logprobs: by row,
    the tokens with the greatest logits, for rows that need them.
    """

    found: list[RowResult]
    norms: list[float]
    score_norms: list[float]
    top_logprobs: dict[int, RowResult]


def find(
    queries: Sequence[RowQuery], jobs: Sequence[RowContext], scored: Scored, num_alternatives: Mapping[int, int]
) -> BatchResult:
    """Answer the queries. num_alternatives: by row, how many of the tokens with the greatest logits to add."""
    device_to_host = DeviceToHost()
    norms = device_to_host.add(scored.norm)
    changed = [(block.rows, device_to_host.add(block.norm)) for block in scored.blocks if block.norm is not None]
    pending = [_selected(group, device_to_host) for group in _query_groups(queries, scored.blocks)]
    others = _alternative_groups(num_alternatives, scored.logits) if num_alternatives else []
    extras = [_selected(group, device_to_host) for group in others]
    device_to_host.send()
    own = [norm for (norm,) in norms.rows]
    # Without processors, scores are logits with the same norm, or log-probabilities with norm 0 (NaN stays NaN).
    of_scores = [norm - norm if job.log_probs else norm for norm, job in zip(own, jobs, strict=True)]
    for rows, transfer in changed:
        for row, (norm,) in zip(rows, transfer.rows, strict=True):
            of_scores[row] = norm
    found: dict[int, RowResult] = {}
    for group in pending:
        found.update(group.read())
    for index, query in enumerate(queries):
        if isinstance(query.ask, FullDistribution):
            found[index] = RowResult((), (), (), (), distribution(scored.logits[query.row], jobs[query.row]))
    in_order = [found[index] for index in range(len(queries))]
    return BatchResult(in_order, own, of_scores, dict(each for group in extras for each in group.read()))


class _QueryGroup(NamedTuple):
    """Queries of one kind and size about rows of one block, answered together.

    size: tokens per query. indices: the position of each query in the batch. lines: the line of each query's row in the
    block.
    """

    block: Block
    size: int
    indices: list[int]
    lines: list[int]
    queries: list[RowQuery]

    def add(self, index: int, line: int, query: RowQuery) -> None:
        """Add a query of this kind and size."""
        self.indices.append(index)
        self.lines.append(line)
        self.queries.append(query)

    def figures(self, tokens: torch.Tensor, lines: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (raw logits, scores) of tokens in some lines of the block. Each: [lines, tokens]"""
        block = self.block
        logits = figures_of(block.logits, lines, tokens)
        if block.scores is not block.logits:
            return logits, figures_of(block.scores, lines, tokens)
        return logits, logits if block.log_norm_offset is None else logits - rows_of(block.log_norm_offset, lines)


def _query_groups(queries: Sequence[RowQuery], blocks: Sequence[Block]) -> list[_QueryGroup]:
    """Return the queries in groups, without those for a full distribution."""
    line_of = {row: (block, line) for block in blocks for line, row in enumerate(block.rows)}
    groups: dict[tuple[int, type[Ask], int, bool], _QueryGroup] = {}
    for index, query in enumerate(queries):
        if isinstance(query.ask, FullDistribution):
            continue
        block, line = line_of[query.row]
        size = _size(query.ask)
        key = (id(block), type(query.ask), size, _wants_ranks(query.ask))
        group = groups.get(key)
        if group is None:
            group = groups[key] = _QueryGroup(block, size, [], [], [])
        group.add(index, line, query)
    return list(groups.values())


def _alternative_groups(num_alternatives: Mapping[int, int], logits: torch.Tensor) -> list[_QueryGroup]:
    """Return groups that ask for the best tokens by the raw logits."""
    block = Block(list(range(len(logits))), logits, logits)
    groups: dict[int, _QueryGroup] = {}
    for row, count in num_alternatives.items():
        groups.setdefault(count, _QueryGroup(block, count, [], [], [])).add(row, row, RowQuery(Top(0, count), row))
    return list(groups.values())


def _size(ask: Ask) -> int:
    if isinstance(ask, Top | GumbelTopK):
        return ask.k
    return len(ask.tokens) if isinstance(ask, Score) else 1


def _wants_ranks(ask: Ask) -> bool:
    return isinstance(ask, Score) and ask.ranks


# --- pending transfers, and their results -------------------------------------------------------------------------


class _PendingScores(NamedTuple):
    """Logits, scores and ranks of given tokens, in a pending transfer. ranks: None if they are not asked for."""

    group: _QueryGroup
    logits: Transfer
    scores: Transfer
    ranks: Transfer | None

    def read(self) -> Iterator[tuple[int, RowResult]]:
        """Yield the index and the answer of each query."""
        ranks = [()] * len(self.group.queries) if self.ranks is None else [tuple(map(int, r)) for r in self.ranks.rows]
        found = zip(self.group.queries, self.logits.rows, self.scores.rows, ranks, strict=True)
        for index, (query, logits, scores, own) in zip(self.group.indices, found, strict=True):
            assert isinstance(query.ask, Score), "the queries of a group are of one kind"
            yield index, RowResult(query.ask.tokens, logits, scores, ranks=own)


class _PendingTopK(NamedTuple):
    """A top-k list, in a pending transfer. values: the sort keys: scores, or scores plus noise."""

    group: _QueryGroup
    top_k_list: TopKList
    values: Transfer
    tokens: Transfer
    logits: Transfer
    scores: Transfer

    def read(self) -> Iterator[tuple[int, RowResult]]:
        """Yield the index and the answer of each query."""
        size, drawn = self.group.size, self.values is not self.scores
        for at, index in enumerate(self.group.indices):
            values, tokens = self.values.rows[at], self.tokens.rows[at]
            places = resolve_ties(values, tokens, size)
            if places is None:
                yield index, self._from_full_row(at)
                continue
            logits, scores = self.logits.rows[at], self.scores.rows[at]
            yield (
                index,
                RowResult(
                    [int(tokens[place]) for place in places],
                    [logits[place] for place in places],
                    [scores[place] for place in places],
                    [values[place] for place in places] if drawn else (),
                ),
            )

    def _from_full_row(self, at: int) -> RowResult:
        """Answer from the full row. Needs transfers of its own."""
        picked = self.top_k_list.full_row_top_k(at, self.group.size)
        tokens = torch.tensor([picked.tokens], device=self.top_k_list.tokens.device)
        logits, scores = (each[0].tolist() for each in self.group.figures(tokens, [self.group.lines[at]]))
        return RowResult(picked.tokens, logits, scores, picked.values if self.values is not self.scores else ())


def _selected(group: _QueryGroup, device_to_host: DeviceToHost) -> _PendingScores | _PendingTopK:
    """Select the tokens that a group asks for, and add their numbers to the transfer."""
    block, ask = group.block, group.queries[0].ask
    if isinstance(ask, Score):
        named = [query.ask.tokens for query in group.queries if isinstance(query.ask, Score)]
        tokens = indices(named, block.logits.device)
        logits, scores = group.figures(tokens, group.lines)
        ranks = _ranks(rows_of(block.logits, group.lines), tokens, logits) if ask.ranks else None
        counted = None if ranks is None else device_to_host.add(ranks)
        return _PendingScores(group, device_to_host.add(logits), device_to_host.add(scores), counted)
    return _best(group, device_to_host) if isinstance(ask, Top) else _drawn(group, device_to_host)


def _ranks(logits: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the rank of each token in its row, 1 for the best; ties go to the lowest token id.

    Args:
        logits: [rows, vocab]
        tokens, values: token ids and their logits. Each: [rows, k]
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    ranks = torch.empty_like(tokens)  # --> [rows, k]
    for at in range(tokens.shape[1]):  # one token at a time: a comparison needs memory for whole rows
        token, value = tokens[:, at, None], values[:, at, None]
        ranks[:, at] = ((logits > value) | ((logits == value) & (ids < token))).sum(1) + 1
    return ranks


def _best(group: _QueryGroup, device_to_host: DeviceToHost) -> _PendingTopK:
    block = group.block
    log_norm_offset = None if block.log_norm_offset is None else rows_of(block.log_norm_offset, group.lines)
    known = best_of_rows(block.best, group.lines)
    top_k_list = sampler.top_k_list(rows_of(block.scores, group.lines), group.size, log_norm_offset, known)
    values = logits = device_to_host.add(top_k_list.values)
    if block.scores is not block.logits:
        logits = device_to_host.add(figures_of(block.logits, group.lines, top_k_list.tokens))
    elif top_k_list.scores is not None:
        logits = device_to_host.add(top_k_list.scores)
    return _PendingTopK(group, top_k_list, values, device_to_host.add(top_k_list.tokens), logits, values)


def _drawn(group: _QueryGroup, device_to_host: DeviceToHost) -> _PendingTopK:
    block = group.block
    scores = rows_of(block.scores, group.lines)
    if block.log_norm_offset is not None:
        scores = scores - rows_of(block.log_norm_offset, group.lines)
    top_k_list = sampler.draw(scores, [query.noise for query in group.queries if query.noise is not None], group.size)
    logits, own = (device_to_host.add(each) for each in group.figures(top_k_list.tokens, group.lines))
    return _PendingTopK(
        group, top_k_list, device_to_host.add(top_k_list.values), device_to_host.add(top_k_list.tokens), logits, own
    )
