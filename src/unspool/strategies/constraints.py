"""Lexical constraints: an automaton that follows the forced words token by token, with gaps, alternatives, an order.

Owns: the automaton, the state of a text in it, and the number of tokens still needed. Does not know: scores, beams,
prompts, or text.

    segment   adjacent tokens                                                         (7, 8)
    template  segments in order, with a gap of any length between two                 (5, None, 7, 8)
    place     alternative templates; one of them is enough                            (5, None, 7, 8) or (9,)
    chain     places, one after another without overlap
    forced words = chains, all of which must be met: each unordered word is its own chain and can overlap others,
    ordered words form one chain
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

Template: TypeAlias = tuple[int | None, ...]
Place: TypeAlias = tuple[Template, ...]
Held: TypeAlias = tuple[tuple[int, ...], ...]
"""Per chain: the number of places that are met, then the position in each alternative of the next place."""

SEARCH_BUDGET: Final = 100_000
"""Most chain steps per request that the search for the best overlap of words with shared tokens can take."""


class TemplateAutomaton:
    """The Knuth-Morris-Pratt automaton of one template, with one automaton per segment, in order.

    At position p the text contains the first p tokens of the template; those of the current segment are its newest.

        (5, None, 7, 7, 8)   position 3 = 5, then later 7 7
                             8 --> 4, the template is met    7 --> 3, still 7 7    any other --> 1, only the 5 stays

    `steps[p]` maps a token to the position after it; all other tokens lead back to `bases[p]`.
    Source: Knuth, Morris, Pratt 1977, Fast Pattern Matching in Strings, section 2.
    """

    def __init__(self, template: Template) -> None:
        self.steps: list[dict[int, int]] = []
        self.bases: list[int] = []
        for segment in _segments(template):
            base, fallback = len(self.steps), len(self.steps)
            for position, token in enumerate(segment, base):
                self.steps.append({**(self.steps[fallback] if position > base else {}), token: position + 1})
                self.bases.append(base)
                if position > base:
                    fallback = self.steps[fallback].get(token, base)

    def __len__(self) -> int:
        return len(self.steps)

    def advance(self, position: int, token: int) -> int:
        """Return the position after one more token."""
        return self.steps[position].get(token, self.bases[position])


def _segments(template: Template) -> list[list[int]]:
    segments: list[list[int]] = [[]]
    for token in template:
        if token is None:
            segments.append([])
        else:
            segments[-1].append(token)
    return [segment for segment in segments if segment]


@dataclass(slots=True, eq=False)
class State:
    """The state of a text in the automaton; texts with equal progress share one object, so a fork is free.

    missing: the number of tokens still needed if words did not overlap and each kept its progress; 0 if all words are
        met. Constrained beam search groups hypotheses into banks by it.
    least, most: bounds on the number of tokens that complete the text; `ForcedWords.need` is exact.
    nexts: the tokens that start or continue a word, with the state after each, or None before its first use.
    """

    held: Held
    missing: int
    least: int
    most: int
    nexts: dict[int, State | None]
    other: State | None = field(default=None, repr=False)

    @property
    def met(self) -> bool:
        return self.missing == 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that start or continue a word, ascending; empty if all words are met."""
        return tuple(self.nexts)


class ForcedWords:
    """The automaton of all forced words; each state is built at its first use.

    An unordered word is met if one of its alternatives occurs anywhere in the text. Words can overlap and share tokens.
    Ordered words are met one after another; a word starts only after the previous word is complete. Every word and
    every segment counts at its first completion. This is exact: any continuation of a later completion can also follow
    the first.

        [5, 6] and [6, 7]   after 5 6: the first word is met, and the second already has its 6

    Args:
        words: templates, or tuples of alternative templates; at least one. Each template needs at least one token.
        ordered: True if the words must come in the given order, without overlap.
    """

    def __init__(self, words: Sequence[Template | Place], *, ordered: bool = False) -> None:
        places = [_place(word) for word in words]
        self.words: tuple[tuple[Place, ...], ...] = (tuple(places),) if ordered else tuple(
            (place,) for place in dict.fromkeys(places)
        )  # fmt: skip
        self._chains = [[[TemplateAutomaton(one) for one in place] for place in chain] for chain in self.words]
        self._tails = [_tails(chain) for chain in self._chains]
        self._components = _components(self._chains)
        self._states: dict[Held, State] = {}
        self._needs: dict[State, int] = {}
        self._budget = SEARCH_BUDGET
        self.start = self._state(tuple(_begin(chain, 0) for chain in self._chains))

    def advance(self, state: State, token: int) -> State:
        """Return the state after one more token."""
        if token not in state.nexts:
            if state.other is None:
                state.other = self._moved(state, token)
            return state.other
        known = state.nexts[token]
        if known is None:
            known = state.nexts[token] = self._moved(state, token)
        return known

    def fits(self, state: State, room: int) -> bool:
        """Return True if `room` more tokens can complete the text."""
        return state.most <= room or (state.least <= room and self.need(state) <= room)

    def need(self, state: State) -> int:
        """Return the least number of tokens that completes the text; 0 if it is complete.

        The result is exact within SEARCH_BUDGET and an upper bound beyond it. In both cases some token leads to a state
        that needs at least one token fewer, so a text that fits now can be completed.
        """
        if state.least == state.most:
            return state.most
        if state not in self._needs:
            self._search(state)
        return self._needs[state]

    def unmet_words(self, state: State, token: int | None = None) -> list[Place]:
        """Return the places that are not met yet; with a token, only the places that it advances."""
        places = []
        for places_of, chain, held in zip(self.words, self._chains, state.held, strict=True):
            for index in range(held[0], len(chain)):
                under_way = zip(chain[index], held[1:], strict=True) if index == held[0] else ()
                if token is None or any(token in one.steps[position] for one, position in under_way):
                    places.append(places_of[index])
        return places

    def _moved(self, state: State, token: int) -> State:
        chains = zip(self._chains, state.held, strict=True)
        return self._state(tuple(_advance(chain, held, token) for chain, held in chains))

    def _state(self, held: Held) -> State:
        """Return the shared state for this description, built at its first use."""
        known = self._states.get(held)
        if known is None:
            known = self._states[held] = self._new_state(held)
        return known

    def _new_state(self, held: Held) -> State:
        needs: list[int] = []  # tokens that each chain needs by itself
        broken: list[int] = []  # the same if the chain's current segment had to start again
        tokens: set[int] = set()
        for chain, tails, (met, *positions) in zip(self._chains, self._tails, held, strict=True):
            place = chain[met] if met < len(chain) else []
            at = list(zip(place, positions, strict=True))
            needs.append(tails[met] + min((len(one) - position for one, position in at), default=0))
            broken.append(tails[met] + min((len(one) - one.bases[position] for one, position in at), default=0))
            tokens.update(*(one.steps[position] for one, position in at))
        # Components share no tokens, so their needs add up; within a component, words can overlap.
        least = sum(max(needs[index] for index in component) for component in self._components)
        # Completing one word can reset the current segment of all others, so only one word keeps its progress.
        most = sum(broken) - max(loss - need for loss, need in zip(broken, needs, strict=True))
        return State(held, sum(needs), least, most, dict.fromkeys(sorted(tokens)))

    def _search(self, start: State) -> None:
        """Find the shortest completion by breadth-first search, and record the need of each state on it."""
        parents: dict[State, State | None] = {start: None}
        frontier, depth, best, end = [start], 0, start.most, start
        while frontier and self._budget > 0:
            depth += 1
            reached: list[State] = []
            for state in frontier:
                self._budget -= len(state.nexts) * len(self._chains)
                for token in state.nexts:
                    after = self.advance(state, token)
                    if after in parents or depth + after.least >= best:
                        continue
                    parents[after] = state
                    reached.append(after)
                    if depth + after.most < best:
                        best, end = depth + after.most, after
            frontier = reached
        need, on_path = end.most, end
        while True:
            self._needs[on_path] = min(need, self._needs.get(on_path, need))
            parent = parents[on_path]
            if parent is None:
                return
            need, on_path = self._needs[on_path] + 1, parent


def _place(word: Template | Place) -> Place:
    """Return the alternatives of a word, without duplicates."""
    if isinstance(word[0], tuple):
        return tuple(dict.fromkeys(word))
    return (word,)


def _begin(chain: Sequence[Sequence[TemplateAutomaton]], place: int) -> tuple[int, ...]:
    """Return a chain's description at the beginning of a place."""
    return (place, *(0 for _ in chain[place])) if place < len(chain) else (place,)


def _advance(chain: Sequence[Sequence[TemplateAutomaton]], held: tuple[int, ...], token: int) -> tuple[int, ...]:
    """Return a chain's description after one more token."""
    place = held[0]
    if place == len(chain):
        return held
    positions = [one.advance(position, token) for one, position in zip(chain[place], held[1:], strict=True)]
    if any(position == len(one) for one, position in zip(chain[place], positions, strict=True)):
        return _begin(chain, place + 1)
    return (place, *positions)


def _tails(chain: Sequence[Sequence[TemplateAutomaton]]) -> list[int]:
    """Return, per number of places met, the number of tokens that the places after the next one need."""
    shortest = [min(map(len, place)) for place in chain]
    return [sum(shortest[met + 1 :]) for met in range(len(chain) + 1)]


def _components(chains: Sequence[Sequence[Sequence[TemplateAutomaton]]]) -> list[list[int]]:
    """Return the connected components of the chains, as lists of indices; chains that share a token are connected."""
    components: list[tuple[list[int], set[int]]] = []
    for index, chain in enumerate(chains):
        members, tokens = [index], {token for place in chain for one in place for step in one.steps for token in step}
        apart = []
        for others, their_tokens in components:
            if tokens & their_tokens:
                members, tokens = others + members, tokens | their_tokens
            else:
                apart.append((others, their_tokens))
        components = [*apart, (members, tokens)]
    return [members for members, _ in components]
