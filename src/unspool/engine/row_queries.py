"""Finds what every ask wants in the rows of one pass, and brings all of it over from the device in one transfer.

Asks of one kind and size about one block of rows are answered by one call. Transfers of their own take a row whose ties
go on behind what was listed, and a whole distribution. Knows no conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from unspool.engine import sampler as select
from unspool.engine.logits import Block, RowContext, Scored, distribution
from unspool.engine.sampler import TopKList, resolve_ties
from unspool.engine.transfer import DeviceToHost, Transfer
from unspool.noise import NoiseKey
from unspool.processors.rows import figures_of, indices, rows_of
from unspool.types import Ask, Distribution, FullDistribution, GumbelTopK, Score, Top


class RowQuery(NamedTuple):
    """An ask about logits, the row that answers it, and the name of its noise where it is a draw."""

    ask: Ask
    row: int
    noise: NoiseKey | None = None


class RowResult(NamedTuple):
    """What answers one ask: tokens in order, with their raw logits and their scores.

    perturbed: score + noise of each where that was drawn. whole: a distribution where one was asked for.
    """

    tokens: Sequence[int]
    logits: Sequence[float]
    scores: Sequence[float]
    perturbed: Sequence[float] = ()
    whole: Distribution | None = None


class BatchResult(NamedTuple):
    """All that is known of a pass.

    found: one for each want. norms, score_norms: by row, logsumexp of the logits and of the scores. alternatives: by
    row, the tokens of the greatest logits, where some were wanted.
    """

    found: list[RowResult]
    norms: list[float]
    score_norms: list[float]
    alternatives: dict[int, RowResult]


def find(
    wants: Sequence[RowQuery], jobs: Sequence[RowContext], scored: Scored, num_alternatives: Mapping[int, int]
) -> BatchResult:
    """Answer the wants. num_alternatives: by row, how many tokens of the greatest logits are wanted besides."""
    device_to_host = DeviceToHost()
    norms = device_to_host.add(scored.norm[:, None])
    changed = [
        (block.rows, device_to_host.add(block.norm[:, None])) for block in scored.blocks if block.norm is not None
    ]
    lots = [_packed(lot, device_to_host) for lot in _query_groups(wants, scored.blocks)]
    extras = [_packed(lot, device_to_host) for lot in _extras(num_alternatives, scored.logits)]
    device_to_host.send()
    own = [norm for (norm,) in norms.rows]
    # The scores of a row without processors have its own norm, or that of log-probabilities, if it has any.
    of_scores = [norm - norm if job.log_probs else norm for norm, job in zip(own, jobs, strict=True)]
    for rows, item in changed:
        for row, (norm,) in zip(rows, item.rows, strict=True):
            of_scores[row] = norm
    found = dict(each for lot in lots for each in lot.read())
    for index, want in enumerate(wants):
        if isinstance(want.ask, FullDistribution):
            found[index] = RowResult((), (), (), (), distribution(scored.logits[want.row], jobs[want.row]))
    in_order = [found[index] for index in range(len(wants))]
    return BatchResult(in_order, own, of_scores, dict(each for lot in extras for each in lot.read()))


class _QueryGroup(NamedTuple):
    """Wants of one kind and size about rows of one block, answered together.

    size: how many tokens each wants. indices: which wants they are. lines: of the block, where their rows stand.
    """

    block: Block
    size: int
    indices: list[int]
    lines: list[int]
    wants: list[RowQuery]

    def add(self, index: int, line: int, want: RowQuery) -> None:
        """Add a want of this kind and size."""
        self.indices.append(index)
        self.lines.append(line)
        self.wants.append(want)

    def figures(self, tokens: torch.Tensor, lines: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (raw logits, scores) of tokens in some of the block's lines. Each: [lines, tokens]"""
        block = self.block
        logits = figures_of(block.logits, lines, tokens)
        if block.scores is not block.logits:
            return logits, figures_of(block.scores, lines, tokens)
        return logits, logits if block.log_norm_offset is None else logits - rows_of(block.log_norm_offset, lines)


def _query_groups(wants: Sequence[RowQuery], blocks: Sequence[Block]) -> list[_QueryGroup]:
    """Return the wants, but for whole distributions, sorted into lots."""
    place = {row: (block, line) for block in blocks for line, row in enumerate(block.rows)}
    lots: dict[tuple[int, type[Ask], int], _QueryGroup] = {}
    for index, want in enumerate(wants):
        if isinstance(want.ask, FullDistribution):
            continue
        block, line = place[want.row]
        size = _size(want.ask)
        key = (id(block), type(want.ask), size)
        lot = lots.get(key)
        if lot is None:
            lot = lots[key] = _QueryGroup(block, size, [], [], [])
        lot.add(index, line, want)
    return list(lots.values())


def _extras(num_alternatives: Mapping[int, int], logits: torch.Tensor) -> list[_QueryGroup]:
    """Return the wish for alternatives as lots, of rows that nothing acts on."""
    block = Block(list(range(len(logits))), logits, logits)
    lots: dict[int, _QueryGroup] = {}
    for row, count in num_alternatives.items():
        lots.setdefault(count, _QueryGroup(block, count, [], [], [])).add(row, row, RowQuery(Top(0, count), row))
    return list(lots.values())


def _size(ask: Ask) -> int:
    if isinstance(ask, Top | GumbelTopK):
        return ask.k
    return len(ask.tokens) if isinstance(ask, Score) else 1


# --- what is packed, and how it is read ---------------------------------------------------------------------------


class _Named(NamedTuple):
    """Figures of tokens that were named, on their way."""

    lot: _QueryGroup
    logits: Transfer
    scores: Transfer

    def read(self) -> Iterator[tuple[int, RowResult]]:
        """Yield what answers each want, by its index."""
        pairs = zip(self.lot.wants, self.logits.rows, self.scores.rows, strict=True)
        for index, (want, logits, scores) in zip(self.lot.indices, pairs, strict=True):
            assert isinstance(want.ask, Score), "a lot is of one kind"
            yield index, RowResult(want.ask.tokens, logits, scores)


class _Listed(NamedTuple):
    """What was listed, on its way. values: by which tokens are chosen; the scores themselves, unless noise is added."""

    lot: _QueryGroup
    top_k_list: TopKList
    values: Transfer
    tokens: Transfer
    logits: Transfer
    scores: Transfer

    def read(self) -> Iterator[tuple[int, RowResult]]:
        """Yield what answers each want, by its index."""
        size, drawn = self.lot.size, self.values is not self.scores
        for at, index in enumerate(self.lot.indices):
            values, tokens = self.values.rows[at], self.tokens.rows[at]
            places = resolve_ties(values, tokens, size)
            if places is None:
                yield index, self._again(at)
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

    def _again(self, at: int) -> RowResult:
        """Look at a whole row, which takes transfers of its own."""
        picked = self.top_k_list.full_row_top_k(at, self.lot.size)
        tokens = torch.tensor([picked.tokens], device=self.top_k_list.tokens.device)
        logits, scores = (each[0].tolist() for each in self.lot.figures(tokens, [self.lot.lines[at]]))
        return RowResult(picked.tokens, logits, scores, picked.values if self.values is not self.scores else ())


def _packed(lot: _QueryGroup, device_to_host: DeviceToHost) -> _Named | _Listed:
    """Select what a lot wants, and pack it."""
    block, ask = lot.block, lot.wants[0].ask
    if isinstance(ask, Score):
        tokens = indices([want.ask.tokens for want in lot.wants if isinstance(want.ask, Score)], block.logits.device)
        return _Named(lot, *(device_to_host.add(each) for each in lot.figures(tokens, lot.lines)))
    return _best(lot, device_to_host) if isinstance(ask, Top) else _drawn(lot, device_to_host)


def _best(lot: _QueryGroup, device_to_host: DeviceToHost) -> _Listed:
    block = lot.block
    log_norm_offset = None if block.log_norm_offset is None else rows_of(block.log_norm_offset, lot.lines)
    top_k_list = select.top_k_list(rows_of(block.scores, lot.lines), lot.size, log_norm_offset)
    values = logits = device_to_host.add(top_k_list.values)
    if block.scores is not block.logits or log_norm_offset is not None:
        logits = device_to_host.add(figures_of(block.logits, lot.lines, top_k_list.tokens))
    return _Listed(lot, top_k_list, values, device_to_host.add(top_k_list.tokens), logits, values)


def _drawn(lot: _QueryGroup, device_to_host: DeviceToHost) -> _Listed:
    block = lot.block
    scores = rows_of(block.scores, lot.lines)
    if block.log_norm_offset is not None:
        scores = scores - rows_of(block.log_norm_offset, lot.lines)
    top_k_list = select.draw(scores, [want.noise for want in lot.wants if want.noise is not None], lot.size)
    logits, own = (device_to_host.add(each) for each in lot.figures(top_k_list.tokens, lot.lines))
    return _Listed(
        lot, top_k_list, device_to_host.add(top_k_list.values), device_to_host.add(top_k_list.tokens), logits, own
    )
