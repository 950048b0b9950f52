"""The automaton of forced words against a plain search of the text, and its counts against all completions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from unspool.strategies import constraints
from unspool.strategies.constraints import ForcedWords, State, TemplateAutomaton


def ends_of(text: Sequence[int], template: Sequence[int | None], start: int) -> set[int]:
    """Return where the template can end in text[start:], by trying every place for every segment."""
    segments: list[list[int]] = [[]]
    for token in template:
        if token is None:
            segments.append([])
        else:
            segments[-1].append(token)
    ends = {start}
    for segment in filter(None, segments):
        size = len(segment)
        ends = {
            begin + size
            for end in ends
            for begin in range(end, len(text) - size + 1)
            if list(text[begin : begin + size]) == segment
        }
    return ends


def holds(text: Sequence[int], words: Sequence[Any], *, ordered: bool = False) -> bool:
    """Return whether the text holds the forced words, read from their definition."""
    places = [word if isinstance(word[0], tuple) else (word,) for word in words]
    if not ordered:
        return all(any(ends_of(text, one, 0) for one in place) for place in places)
    ends = {0}
    for place in places:
        ends = {end for start in ends for one in place for end in ends_of(text, one, start)}
    return bool(ends)


def random_words(rng: random.Random, vocab: int, *, longest: int = 4, most: int = 3) -> tuple[Any, ...]:
    """Return some words over few tokens, so that they overlap: sequences, templates and alternatives."""

    def template() -> tuple[int | None, ...]:
        tokens: list[int | None] = [rng.randrange(vocab) for _ in range(rng.randint(1, longest))]
        if len(tokens) > 1 and rng.random() < 0.4:
            tokens.insert(rng.randint(1, len(tokens) - 1), None)
        return tuple(tokens)

    def word() -> Any:
        return template() if rng.random() < 0.6 else tuple(template() for _ in range(rng.randint(1, 3)))

    return tuple(word() for _ in range(rng.randint(1, most)))


def after(words: ForcedWords, *tokens: int) -> State:
    state = words.start
    for token in tokens:
        state = words.advance(state, token)
    return state


def test_template_automaton_worked_example() -> None:
    one = TemplateAutomaton((5, None, 7, 7, 8))
    position = 0
    for token, expected in ((7, 0), (5, 1), (9, 1), (7, 2), (7, 3), (7, 3), (5, 1), (7, 2), (7, 3), (8, 4)):
        position = one.advance(position, token)
        assert position == expected, (token, expected)
    assert position == len(one)


def test_forced_words_worked_example() -> None:
    words = ForcedWords([(5, 6), (6, 7)])
    assert (words.start.missing, words.need(words.start)) == (4, 3)
    state = after(words, 5, 6)
    assert words.unmet_words(state) == [((6, 7),)]
    assert (state.missing, state.tokens) == (1, (6, 7))
    assert words.advance(state, 7).met


@pytest.mark.parametrize(
    ("words", "ordered", "met", "not_met"),
    [
        ([(5,)], False, [(5,), (1, 5, 2)], [(), (1, 2)]),
        ([(5, 6)], False, [(5, 5, 6), (5, 6)], [(5, 1, 6), (6, 5)]),
        ([((5, 6), (7,))], False, [(7,), (5, 6)], [(5,), (6,)]),
        ([(5, None, 7, 8)], False, [(5, 7, 8), (5, 1, 7, 8), (5, 7, 7, 8)], [(7, 8, 5), (5, 7, 1, 8)]),
        ([(5, None, 5)], False, [(5, 5), (5, 1, 5)], [(5,)]),
        ([(5, 6), (6, 7)], False, [(5, 6, 7), (6, 7, 5, 6)], [(5, 6), (5, 7)]),
        ([(5, 6), (6, 7)], True, [(5, 6, 6, 7), (5, 6, 1, 6, 7)], [(5, 6, 7), (6, 7, 5, 6)]),
        ([(5,), (5,)], False, [(5,)], [(6,)]),
        ([(5,), (5,)], True, [(5, 5), (5, 1, 5)], [(5,)]),
        ([((5,), (6, 6)), (7,)], True, [(5, 7), (6, 6, 7)], [(7, 5), (6, 7)]),
    ],
)
def test_what_meets_forced_words(words: Any, ordered: bool, met: Any, not_met: Any) -> None:
    automaton = ForcedWords(words, ordered=ordered)
    assert all(after(automaton, *text).met for text in met)
    assert not any(after(automaton, *text).met for text in not_met)


def test_random_texts_meet_random_words_when_they_hold_them() -> None:
    rng, met = random.Random(0), 0
    for _ in range(1500):
        vocab, ordered = rng.randint(2, 4), rng.random() < 0.4
        given = random_words(rng, vocab)
        words, text = ForcedWords(given, ordered=ordered), [rng.randrange(vocab) for _ in range(12)]
        state = words.start
        for length, token in enumerate(text, 1):
            state = words.advance(state, token)
            assert state.met == holds(text[:length], given, ordered=ordered), (given, ordered, text[:length])
        met += state.met
    assert 400 < met < 1100


def shortest_completion(words: ForcedWords, start: State, vocab: int) -> int:
    """Try every token at every step, however little sense it makes."""
    seen, frontier, depth = {start}, [start], 0
    while not any(state.met for state in frontier):
        frontier = [words.advance(state, token) for state in frontier for token in range(vocab)]
        frontier = [state for state in dict.fromkeys(frontier) if state not in seen]
        seen.update(frontier)
        depth += 1
    return depth


def test_need_is_the_length_of_the_shortest_completion() -> None:
    rng, searched = random.Random(1), 0
    for _ in range(700):
        vocab = rng.randint(2, 4)
        words = ForcedWords(random_words(rng, vocab), ordered=rng.random() < 0.4)
        for state in (words.start, after(words, *(rng.randrange(vocab) for _ in range(rng.randint(1, 9))))):
            need = words.need(state)
            assert need == shortest_completion(words, state, vocab)
            assert [words.fits(state, room) for room in (need - 1, need, need + 1)] == [False, True, True]
            searched += state.least < state.most
    assert searched > 100


@pytest.mark.parametrize("budget", [0, 10, 40, 200])
def test_what_fits_can_be_completed_even_where_the_search_is_cut_short(
    monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """From any state on, taking the token that needs least is never refused, and ends with all words met."""
    monkeypatch.setattr(constraints, "SEARCH_BUDGET", budget)
    rng = random.Random(2)
    for _ in range(300):
        vocab = rng.randint(2, 4)
        words = ForcedWords(random_words(rng, vocab, most=4))
        state = after(words, *(rng.randrange(vocab) for _ in range(rng.randint(0, 6))))
        for room in reversed(range(words.need(state))):
            if state.met:
                break
            assert any(words.fits(words.advance(state, token), room) for token in state.tokens)
            state = min((words.advance(state, token) for token in state.tokens), key=words.need)
        assert state.met


def test_words_without_common_tokens_need_no_search() -> None:
    words = ForcedWords([(index, index + 100, index + 200) for index in range(0, 60, 2)])
    assert words.start.least == words.start.most == 90
    under_way = after(words, 4, 104)
    assert under_way.least == under_way.most == 88


def test_many_words_with_common_tokens_end_within_the_budget() -> None:
    rng = random.Random(3)
    words = ForcedWords([tuple(rng.sample(range(8), 5)) for _ in range(14)])
    assert words.start.least <= words.need(words.start) <= words.start.most
    assert len(words._states) < constraints.SEARCH_BUDGET / 14


def test_texts_that_have_come_equally_far_share_one_state() -> None:
    words = ForcedWords([(5, 6), ((7,), (8, 9))])
    assert after(words, 1, 5) is after(words, 2, 2, 5)
    before = after(words, 5)
    assert after(words, 5, 6) is words.advance(before, 6) is not before
    assert before is after(words, 5), "advancing left the state as it was"


def test_alternatives_count_as_one_word_and_equal_words_once() -> None:
    words = ForcedWords([((5, 6, 7), (8,)), (8,), ((8,),)])
    assert (words.start.missing, words.need(words.start)) == (2, 1)
    assert len(words.words) == 2 and after(words, 8).met
