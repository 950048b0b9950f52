"""Answers the asks of many requests from the logits of one pass: logits processors, sampler, stopping criteria.

Only this module turns tensors into the plain numbers that strategies receive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from unspool.engine.branches import Branch, RowRef
from unspool.engine.combine_logits import combine_logits
from unspool.engine.conversation import Conversation
from unspool.engine.logits import RowContext, culprit, distribution, process, support_of
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


class Asked(NamedTuple):
    """One ask, and the index of the row of logits that answers it."""

    ask: Ask
    place: Place
    row: int


class Answer(NamedTuple):
    """The reply to one turn. cuts: for traced requests, each row's distribution or None; else empty."""

    reply: Reply
    cuts: tuple[Distribution | None, ...] = ()


Answers: TypeAlias = dict[int, Answer | Exception]


def answer(conversations: Sequence[Conversation], now: float) -> Answers:
    """Return, by request number, the answer to each open turn, or a NumericsError if a row is not a distribution.

    Args:
        conversations: requests that have all the rows they ask about.
        now: seconds, on the clock of the requests' deadlines.
    """
    asked, places = _collect(conversations)
    answers: Answers = {}
    rows = iter(_rows(asked, places, answers, now))
    for conversation in conversations:
        similar = iter(_similarities(conversation))
        pairs: list[tuple[Row, Distribution | None]] = []
        for ask in conversation.turn.asks:
            if isinstance(ask, Similarity):
                pairs.append((Row((), math.nan, similarity=next(similar)), None))
            elif _is_in_prompt(conversation, ask):
                pairs.append((_prompt_row(conversation, ask, answers), None))
            else:
                pairs.append(next(rows))
        cuts = tuple(cut for _, cut in pairs) if conversation.recorder is not None else ()
        answers.setdefault(conversation.number, Answer(tuple(row for row, _ in pairs), cuts))
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
    tips = [conversation.branches[ask.branch].tip for ask in conversation.turn.asks if isinstance(ask, Similarity)]
    return conversation.hidden.similarities(tips) if conversation.hidden is not None and tips else []


def _rows(
    asked: Sequence[Asked], places: Sequence[Place], answers: Answers, now: float
) -> list[tuple[Row, Distribution | None]]:
    """Return the rows that answer all asks about logits. Adds the errors of flawed rows to `answers`."""
    if not asked:
        return []
    jobs = [_row_context(place) for place in places]
    scored = process(_gather([place.branch.main.rows[place.length] for place in places]), jobs)
    result = find([_query(each) for each in asked], jobs, scored, _num_alternatives(places))
    norms, score_norms = result.norms, result.score_norms
    _note_flaws(places, jobs, scored.logits, (norms, score_norms), answers)
    for number, others in result.top_logprobs.items():
        node = places[number].branch.tip.at(places[number].length)
        pairs = zip(others.tokens, others.logits, strict=True)
        node.top_logprobs = tuple((token, logit - norms[number]) for token, logit in pairs)
    _prepare_criteria(asked, result.found)
    rows: list[tuple[Row, Distribution | None]] = []
    for each, found in zip(asked, result.found, strict=True):
        candidates = _candidates(each.place, found, norms[each.row], now)
        row = Row(candidates, score_norms[each.row], tuple(found.perturbed), found.distribution, ranks=found.ranks)
        _remember(each.place, row)
        traced = each.place.conversation.recorder is not None
        cut = found.distribution or (distribution(scored.logits[each.row], jobs[each.row]) if traced else None)
        rows.append((row, cut if traced else None))
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


def _prepare_criteria(asked: Sequence[Asked], found: Sequence[RowResult]) -> None:
    """Pass all candidate tokens at once to criteria that prepare for them."""
    pairs: dict[int, tuple[Criterion, list[tuple[Any, int]]]] = {}
    for each, result in zip(asked, found, strict=True):
        branch_states = each.place.branch.branch_states[each.place.length]
        for criterion, state in zip(each.place.conversation.request.criteria, branch_states.criteria, strict=True):
            if criterion.prepares:
                _, prepared = pairs.setdefault(id(criterion), (criterion, []))
                prepared += [(state, token) for token in result.tokens]
    for criterion, prepared in pairs.values():
        criterion.prepare(prepared)


def _collect(conversations: Iterable[Conversation]) -> tuple[list[Asked], list[Place]]:
    """Return every ask about logits with its row index, and the place of every row; equal places share a row."""
    asked: list[Asked] = []
    rows: dict[tuple[int, int, int, int, tuple[int, ...]], int] = {}
    places: list[Place] = []
    for conversation in conversations:
        for ask in conversation.turn.asks:
            if isinstance(ask, Similarity) or _is_in_prompt(conversation, ask):
                continue
            branch = conversation.branches[ask.branch]
            output = ask.output if isinstance(ask, Sample | GumbelTopK) else 0
            place = Place(conversation, branch, branch.length - ask.back, output, ask.taken_tokens)
            key = (conversation.number, branch.number, place.length, output, ask.taken_tokens)
            row = rows.setdefault(key, len(places))
            if row == len(places):
                places.append(place)
            asked.append(Asked(ask, place, row))
    return asked, places


def _gather(refs: Sequence[RowRef]) -> torch.Tensor:
    """Return the rows as one tensor, without a copy if they already are. --> [rows, vocab]"""
    source = refs[0].source
    if all(ref.source is source for ref in refs):
        index = [ref.row for ref in refs]
        return source if index == list(range(len(source))) else source[index]
    return torch.stack([ref.source[ref.row] for ref in refs])


def _row_context(place: Place) -> RowContext:
    conversation, request = place.conversation, place.conversation.request
    key = RowKey(request.seed, conversation.prompt_key, place.output, place.position, place.taken_tokens)
    log_probs = request.strategy.space == "log_probs"
    branch_states, cached_seqs = place.branch.branch_states[place.length], place.branch.cached_seqs
    main = cached_seqs[0].rows[place.length]
    negative = cached_seqs[1].rows[place.length] if len(cached_seqs) > 1 else None
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


def _query(asked: Asked) -> RowQuery:
    """Return the ask with its row, and its noise key if it is a draw."""
    ask, place = asked.ask, asked.place
    if not isinstance(ask, Sample | GumbelTopK):
        return RowQuery(ask, asked.row)
    lane = ask.lane if isinstance(ask, GumbelTopK) else 0
    conversation = place.conversation
    key = NoiseKey(conversation.request.seed, conversation.prompt_key, place.output, place.position, lane)
    return RowQuery(ask, asked.row, key)


def _num_alternatives(places: Sequence[Place]) -> dict[int, int]:
    """Return, by row, how many of the model's own best tokens the option `logprobs` asks for."""
    counts = (place.conversation.request.config.logprobs for place in places)
    return {row: count for row, count in enumerate(counts) if count}


def _candidates(place: Place, found: RowResult, norm: float, now: float) -> tuple[Candidate, ...]:
    """Return the tokens as the strategy receives them. norm: logsumexp of the raw logits."""
    conversation = place.conversation
    late = conversation.deadline is not None and now >= conversation.deadline
    branch_states = place.branch.branch_states[place.length]
    return tuple(
        Candidate(token, score, logit - norm, conversation.ending(branch_states, place.length, token, late))
        for token, logit, score in zip(found.tokens, found.logits, found.scores, strict=True)
    )


def _remember(place: Place, row: Row) -> None:
    """Store the log-probability and score of each candidate on the branch, for the outputs."""
    node = place.branch.tip.at(place.length)
    for each in row.candidates:
        # Branches on the same node ask in turn. The first ask avoids no tokens; `Extend` has the scores of the others.
        node.scored.setdefault(each.token, (each.logprob, each.score))
    if row.distribution is not None:
        node.distribution = row.distribution
