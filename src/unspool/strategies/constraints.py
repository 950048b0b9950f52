"""What an output must hold, followed token by token: token sequences with gaps, alternatives, an order.

Owns: the automaton, how far a text has come in it, and how many tokens are still needed. Does not know: scores, beams,
prompts, or text.

    segment   tokens that stand next to each other                                    (7, 8)
    template  segments in order, with a gap of any length between two                 (5, None, 7, 8)
    place     alternative templates, of which one is enough                           (5, None, 7, 8) or (9,)
    chain     places, one after another without overlapping
    forced words = chains, all of which must be met: unordered words are a chain each and may overlap, ordered words
    are one chain together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

Template: TypeAlias = tuple[int | None, ...]
Place: TypeAlias = tuple[Template, ...]
Held: TypeAlias = tuple[tuple[int, ...], ...]
"""For each chain the number of its places that are met, then the position in each alternative of the next one."""

SEARCH_BUDGET: Final = 100_000
"""Most moves of chains tried, over a request's whole life, to see how words that share tokens overlap best."""


class TemplateAutomaton:
    """Follows one template: the automaton of Knuth, Morris and Pratt for each segment, one segment after another.

    At position p the text holds the first p tokens of the template, those of the segment under way as its newest ones.

        (5, None, 7, 7, 8)   position 3 = 5, then later 7 7
                             8 --> 4, the template is met    7 --> 3, still 7 7    any other --> 1, only the 5 stays

    `steps[p]` maps the tokens that lead somewhere to the position they lead to; all others lead back to `bases[p]`.
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
    """How far a text has come: a value that forks for free, the same object for texts that have come equally far.

    missing: tokens that would still have to come if no two words overlapped and none under way were broken off; 0
        where all is met. What beam search sorts hypotheses into banks by.
    least, most: bounds of the number of tokens that can complete the text; `ForcedWords.need` is exact.
    nexts: the tokens that get or keep a word under way, with the state after each where it is known.
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
        """The tokens that get or keep a word under way, ascending; none once all is met."""
        return tuple(self.nexts)


class ForcedWords:
    """The automaton of everything that an output must hold, built state by state as texts reach them.

    An unordered word is met once one of its alternatives has occurred anywhere in the text, whatever else has: words
    may overlap and share tokens. Ordered words are met one after another, none beginning before the one in front is
    complete. Every word and every segment counts as soon as it is complete for the first time, which loses nothing:
    whatever can follow a later completion can follow the first one too.

        [5, 6] and [6, 7]   after 5 6: the first word is met, and the second has its 6 already

    Args:
        words: templates, or tuples of alternative ones; at least one, none empty.
        ordered: whether they must come in the order given, without overlapping.
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
        """Return whether `room` more tokens can complete the text."""
        return state.most <= room or (state.least <= room and self.need(state) <= room)

    def need(self, state: State) -> int:
        """Return the least number of tokens that completes the text, 0 where it is complete.

        Exact while the search budget lasts, and beyond that an upper bound. Either way some token leads to a state
        that needs at least one fewer, so a text that fits now can be completed.
        """
        if state.least == state.most:
            return state.most
        if state not in self._needs:
            self._search(state)
        return self._needs[state]

    def unmet_words(self, state: State, token: int | None = None) -> list[Place]:
        """Return the places that still have to be met, or those of them that the token brings forward."""
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
        """Return the one state of this description."""
        known = self._states.get(held)
        if known is None:
            known = self._states[held] = self._new_state(held)
        return known

    def _new_state(self, held: Held) -> State:
        needs: list[int] = []  # of each chain by itself
        broken: list[int] = []  # the same if what is under way in its segment were broken off
        tokens: set[int] = set()
        for chain, tails, (met, *positions) in zip(self._chains, self._tails, held, strict=True):
            place = chain[met] if met < len(chain) else []
            at = list(zip(place, positions, strict=True))
            needs.append(tails[met] + min((len(one) - position for one, position in at), default=0))
            broken.append(tails[met] + min((len(one) - one.bases[position] for one, position in at), default=0))
            tokens.update(*(one.steps[position] for one, position in at))
        # A token belongs to one component alone, so what components need adds up; within one, words may overlap.
        least = sum(max(needs[index] for index in component) for component in self._components)
        # To complete one word may break off what is under way in all others, so only one may count what it has.
        most = sum(broken) - max(loss - need for loss, need in zip(broken, needs, strict=True))
        return State(held, sum(needs), least, most, dict.fromkeys(sorted(tokens)))

    def _search(self, start: State) -> None:
        """Find the shortest completion, breadth first between the bounds, and note what each state on it needs."""
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
    """Return a word's alternatives, each once."""
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
    """Return for each number of places met how many tokens the places behind the next one need."""
    shortest = [min(map(len, place)) for place in chain]
    return [sum(shortest[met + 1 :]) for met in range(len(chain) + 1)]


def _components(chains: Sequence[Sequence[Sequence[TemplateAutomaton]]]) -> list[list[int]]:
    """Return the chains' indices, those together that share tokens, directly or through others."""
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
