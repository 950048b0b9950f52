"""Answers the asks of many requests from the logits of one pass: logits processors, sampler, stopping criteria.

Only this module turns tensors into the plain numbers that strategies receive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from unspool.engine.branches import Branch, RowRef
from unspool.engine.combine_logits import combine_logits
from unspool.engine.conversation import Conversation
from unspool.engine.logits import PLAIN, PLAIN_LOG_PROBS, RowContext, culprit, distribution, process, support_of
from unspool.engine.row_queries import RowQuery, RowResult, find
from unspool.errors import NumericsError
from unspool.noise import NoiseKey
from unspool.protocols import Criterion, RowKey
from unspool.types import Ask, Candidate, Distribution, GumbelTopK, Reply, Row, Sample, Similarity


class Place(NamedTuple):
    """One row of logits: an output position of a branch.

    length: output tokens before the position. output: selects the noise that processors draw.
    taken_tokens: tokens that the diversity penalty counts.
    """

    conversation: Conversation
    branch: Branch
    length: int
    output: int
    taken_tokens: tuple[int, ...]

    @property
    def position(self) -> int:
        """Tokens of prompt and output before it."""
        return len(self.branch.main.prompt) + self.length


class Answer(NamedTuple):
    """The reply to one turn. cuts: for traced requests, each row's distribution or None; else empty."""

    reply: Reply
    cuts: tuple[Distribution | None, ...] = ()


Answers: TypeAlias = dict[int, Answer | Exception]

_DRAWS: Final = (Sample, GumbelTopK)


def answer(conversations: Sequence[Conversation], now: float) -> Answers:
    """Return, by request number, the answer to each open turn, or a NumericsError if a row is not a distribution.

    Args:
        conversations: requests that have all the rows they ask about.
        now: seconds, on the clock of the requests' deadlines.
    """
    queries, places = _collect(conversations)
    answers: Answers = {}
    found = iter(_rows(queries, places, answers, now))
    for conversation in conversations:
        similar = iter(_similarities(conversation))
        rows: list[Row] = []
        cuts: list[Distribution | None] = []
        for ask in conversation.turn.asks:
            row, cut = None, None
            if isinstance(ask, Similarity):
                row = Row((), math.nan, similarity=next(similar))
            elif _is_in_prompt(conversation, ask):
                row = _prompt_row(conversation, ask, answers)
            else:
                row, cut = next(found)
            rows.append(row)
            cuts.append(cut)
        reply = Answer(tuple(rows), tuple(cuts) if conversation.recorder is not None else ())
        answers.setdefault(conversation.number, reply)
    return answers


def _is_in_prompt(conversation: Conversation, ask: Ask) -> bool:
    return ask.back > conversation.branches[ask.branch].length


def _prompt_row(conversation: Conversation, ask: Ask, answers: Answers) -> Row:
    """Return the answer to an ask about a position inside the prompt. Adds the error of a flawed row to `answers`."""
    branch = conversation.branches[ask.branch]
    row, norm = branch.main.prompt_rows[branch.length - ask.back][ask]
    if reason := _flaw(norm, norm):
        answers[conversation.number] = NumericsError(branch.number, branch.total - ask.back, reason)
    return row


def _similarities(conversation: Conversation) -> list[float]:
    """Return the answers to a turn's Similarity asks, in their order."""
    if conversation.hidden is None:
        return []
    tips = [conversation.branches[ask.branch].tip for ask in conversation.turn.asks if isinstance(ask, Similarity)]
    return conversation.hidden.similarities(tips) if tips else []


def _rows(
    queries: Sequence[RowQuery], places: Sequence[Place], answers: Answers, now: float
) -> list[tuple[Row, Distribution | None]]:
    """Return the rows that answer all asks about logits. Adds the errors of flawed rows to `answers`."""
    if not queries:
        return []
    jobs = [_row_context(place) for place in places]
    scored = process(_gather([place.branch.main.rows[place.length] for place in places]), jobs)
    result = find(queries, jobs, scored, _num_alternatives(places))
    norms, score_norms = result.norms, result.score_norms
    _note_flaws(places, jobs, scored.logits, (norms, score_norms), answers)
    for number, others in result.top_logprobs.items():
        node = places[number].branch.tip.at(places[number].length)
        pairs = zip(others.tokens, others.logits, strict=True)
        node.top_logprobs = tuple((token, logit - norms[number]) for token, logit in pairs)
    _prepare_criteria(queries, places, result.found)
    rows: list[tuple[Row, Distribution | None]] = []
    for query, found in zip(queries, result.found, strict=True):
        place = places[query.row]
        candidates = _candidates(place, found, norms[query.row], now)
        row = Row(candidates, score_norms[query.row], tuple(found.perturbed), found.distribution, ranks=found.ranks)
        _remember(place, row)
        cut = None
        if place.conversation.recorder is not None:
            cut = found.distribution or distribution(scored.logits[query.row], jobs[query.row])
        rows.append((row, cut))
    return rows


def _note_flaws(
    places: Sequence[Place],
    jobs: Sequence[RowContext],
    logits: torch.Tensor,
    norms: tuple[Sequence[float], Sequence[float]],
    answers: Answers,
) -> None:
    """Add an error for each request with a row that is not a distribution. norms: of the logits and of the scores."""
    for row, (place, norm, score_norm) in enumerate(zip(places, *norms, strict=True)):
        if math.isfinite(norm) and math.isfinite(score_norm):
            continue
        hides_nan = place.conversation.request.config.remove_invalid_values
        reason = _flaw(score_norm if hides_nan else norm, score_norm)
        if reason is None:
            continue
        empty_row_error = score_norm == -math.inf and math.isfinite(norm)
        if empty_row_error and place.conversation.allows_empty_rows(place.branch):
            place.conversation.empty_row_error = NumericsError(place.branch.number, place.position, reason)
            continue
        if not empty_row_error and math.isfinite(norm) and jobs[row].chain:
            name = culprit(logits[row], jobs[row])
            reason = f"the scores hold NaN or +inf after the processor {name}; check its options"
        answers[place.conversation.number] = NumericsError(place.branch.number, place.position, reason)


def _prepare_criteria(queries: Sequence[RowQuery], places: Sequence[Place], found: Sequence[RowResult]) -> None:
    """Pass all candidate tokens at once to criteria that prepare for them."""
    pairs: dict[int, tuple[Criterion, list[tuple[Any, int]]]] = {}
    for query, result in zip(queries, found, strict=True):
        place = places[query.row]
        criteria = place.conversation.request.criteria
        for criterion, state in zip(criteria, place.branch.branch_states[place.length].criteria, strict=True):
            if criterion.prepares:
                _, prepared = pairs.setdefault(id(criterion), (criterion, []))
                prepared += [(state, token) for token in result.tokens]
    for criterion, prepared in pairs.values():
        criterion.prepare(prepared)


def _collect(conversations: Iterable[Conversation]) -> tuple[list[RowQuery], list[Place]]:
    """Return every ask about logits as a query, and the place of every row; equal places share a row."""
    queries: list[RowQuery] = []
    rows: dict[tuple[int, int, int, int, tuple[int, ...]], int] = {}
    places: list[Place] = []
    for conversation in conversations:
        for ask in conversation.turn.asks:
            if isinstance(ask, Similarity) or _is_in_prompt(conversation, ask):
                continue
            branch = conversation.branches[ask.branch]
            length = branch.length - ask.back
            output = ask.output if isinstance(ask, _DRAWS) else 0
            row = rows.setdefault((conversation.number, branch.number, length, output, ask.taken_tokens), len(places))
            if row == len(places):
                places.append(Place(conversation, branch, length, output, ask.taken_tokens))
            queries.append(RowQuery(ask, row, _noise_key(ask, places[row]) if isinstance(ask, _DRAWS) else None))
    return queries, places


def _gather(refs: Sequence[RowRef]) -> torch.Tensor:
    """Return the rows as one tensor, without a copy if they already are. --> [rows, vocab]"""
    source = refs[0].source
    if all(ref.source is source for ref in refs):
        index = [ref.row for ref in refs]
        return source if index == list(range(source.shape[0])) else source[index]
    return torch.stack([ref.source[ref.row] for ref in refs])


def _row_context(place: Place) -> RowContext:
    conversation, request, cached_seqs = place.conversation, place.conversation.request, place.branch.cached_seqs
    log_probs = request.strategy.space == "log_probs"
    main = cached_seqs[0].rows[place.length]
    negative = cached_seqs[1].rows[place.length] if len(cached_seqs) > 1 else None
    if not conversation.chain and negative is None and main.inner is None:
        return PLAIN_LOG_PROBS if log_probs else PLAIN
    key = RowKey(request.seed, conversation.prompt_key, place.output, place.position, place.taken_tokens)
    branch_states = place.branch.branch_states[place.length]
    read = None
    if negative is not None or main.inner is not None:
        scale = request.config.guidance_scale
        allowed = None
        if main.inner is not None:
            allowed = support_of(conversation.chain, branch_states.processors, conversation.context.info.vocab_size)
        read = combine_logits(main, negative, 1.0 if scale is None else scale, allowed)
        # As in transformers, beams add up the guided sums of log-probabilities without normalizing them.
        log_probs = log_probs and negative is None
    return RowContext(
        conversation.chain, branch_states.processors, request.config.processor_order, log_probs, key, read
    )


def _flaw(norm: float, score_norm: float) -> str | None:
    """Return why a row is not a distribution, or None."""
    if math.isnan(norm) or norm == math.inf:
        return "the model's logits hold NaN or +inf; check the model's weights and dtype"
    if math.isnan(score_norm) or score_norm == math.inf:
        return "the scores hold NaN or +inf after the processors; check their options"
    if score_norm == -math.inf:
        return "every token is forbidden; relax the options that forbid tokens"
    return None


def _noise_key(ask: Sample | GumbelTopK, place: Place) -> NoiseKey:
    lane = ask.lane if isinstance(ask, GumbelTopK) else 0
    conversation = place.conversation
    return NoiseKey(conversation.request.seed, conversation.prompt_key, place.output, place.position, lane)


def _num_alternatives(places: Sequence[Place]) -> dict[int, int]:
    """Return, by row, how many of the model's own best tokens the option `logprobs` asks for."""
    counts = (place.conversation.request.config.logprobs for place in places)
    return {row: count for row, count in enumerate(counts) if count}


def _candidates(place: Place, found: RowResult, norm: float, now: float) -> tuple[Candidate, ...]:
    """Return the tokens as the strategy receives them. norm: logsumexp of the raw logits."""
    conversation = place.conversation
    late = conversation.deadline is not None and now >= conversation.deadline
    endings = conversation.endings(place.branch.branch_states[place.length], place.length, found.tokens, late)
    return tuple(
        [
            Candidate(token, score, logit - norm, ends)
            for token, logit, score, ends in zip(found.tokens, found.logits, found.scores, endings, strict=True)
        ]
    )


def _remember(place: Place, row: Row) -> None:
    """Store the log-probability and score of each candidate on the branch, for the outputs."""
    node = place.branch.tip.at(place.length)
    for each in row.candidates:
        # Branches on the same node ask in turn. The first ask avoids no tokens; `Extend` has the scores of the others.
        node.scored.setdefault(each.token, (each.logprob, each.score))
    if row.distribution is not None:
        node.distribution = row.distribution
