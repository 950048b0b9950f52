"""An output ends with the token that completes a stop string, and nothing of the stop string is shown before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.tokenizers import ContinuationTokenizer, Counting, byte_fallback, byte_level, word_piece
from unspool.errors import OptionError
from unspool.text.detokenize import Detokenizer
from unspool.text.stops import HoldBack, StopState, StopStrings, check_stops, first_stop

KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word piece": word_piece}


class Pieces:
    """A tokenizer of whole strings: token i is the i-th piece."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.pieces[i] for i in ids)


def context(prompt: list[int]) -> Any:
    return SimpleNamespace(prompt=tuple(prompt))


def end_of(criterion: StopStrings, prompt: list[int], output: list[int]) -> int | None:
    """Return the index of the output token that ends it, asking about each before it is appended."""
    state = criterion.start(context(prompt))
    for index, token in enumerate(output):
        if criterion.ends(state, token):
            return index
        state = criterion.advance(state, token)
    return None


@pytest.mark.parametrize(
    ("pieces", "stops", "index"),
    [
        (["foo", " END"], ("END",), 1),  # a whole token
        (["foo", " xENDy", "z"], ("END",), 1),  # inside a token
        (["a", "E", "N", "D"], ("END",), 3),  # over several tokens
        (["aE", "ND more"], ("END",), 1),  # over two, with text on both sides
        (["E", "E", "ND"], ("END",), 2),  # a false start
        (["aa", "b"], ("aab",), 1),
        (["a", "aa", "b"], ("aab",), 2),  # overlapping itself
        (["EN", "X", "D"], ("END",), None),
        (["E", "ND"], ("nd", "ND"), 1),  # the second of two
        (["x", "\n", "\nUser", ":"], ("\n\nUser:",), 3),
        (["", "END"], ("END",), 1),
        (["END"], ("END",), 0),
        (["x", "."], (".",), 1),  # one character
        (["end"], ("END",), None),  # case counts
    ],
)
def test_an_output_ends_with_the_token_that_completes_a_stop_string(
    pieces: list[str], stops: tuple[str, ...], index: int | None
) -> None:
    criterion = StopStrings(stops, Detokenizer(Pieces(*pieces)))
    assert end_of(criterion, [], list(range(len(pieces)))) == index


def test_a_stop_string_that_begins_in_the_prompt_is_none() -> None:
    criterion = StopStrings(("END",), Detokenizer(Pieces("so it EN", "D", " END")))
    assert end_of(criterion, [0], [1, 1, 2]) == 2
    assert end_of(criterion, [0, 1], [1]) is None


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_stop_string_of_characters_made_of_several_tokens_is_seen_with_its_last_token(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode("x从💡前y", add_special_tokens=False)
    criterion = StopStrings(("从💡",), Detokenizer(tokenizer))
    end = end_of(criterion, [], ids)

    assert end is not None
    assert tokenizer.decode(ids[: end + 1]).endswith("x从💡")
    assert not tokenizer.decode(ids[:end]).endswith("💡")


def test_text_that_waits_for_its_last_byte_still_completes_a_stop_string() -> None:
    class Bytes:
        parts = (b"EN", b"D\xf0", b"\x9f\x92\xa1")

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return b"".join(self.parts[i] for i in ids).decode(errors="replace")

    assert end_of(StopStrings(("END",), Detokenizer(Bytes())), [], [0, 1]) == 1
    assert end_of(StopStrings(("D💡",), Detokenizer(Bytes())), [], [0, 1, 2]) == 2


def test_a_leading_space_that_the_tokenizer_adds_belongs_to_the_text() -> None:
    tokenizer = byte_fallback()
    prompt = tokenizer.encode("the", add_special_tokens=False)
    (king,) = tokenizer.encode("king", add_special_tokens=False)
    assert end_of(StopStrings((" king",), Detokenizer(tokenizer)), prompt, [king]) == 0
    assert end_of(StopStrings((" king",), Detokenizer(tokenizer)), [], [king]) is None


def test_a_piece_that_joins_the_next_one_completes_a_stop_string_only_then() -> None:
    tokenizer = ContinuationTokenizer(["say", "hel@@", "lo"])
    assert end_of(StopStrings(("hello",), Detokenizer(tokenizer)), [0], [1, 2]) == 1


def test_text_that_a_harmless_token_lets_go_is_looked_at_too() -> None:
    """U+FFFD waits, since it might be part of a character; the token behind it cannot complete anything itself."""
    tokenizer = byte_level()
    output = tokenizer.encode("a\ufffdx")
    criterion = StopStrings(("\ufffd",), Detokenizer(tokenizer))
    assert not criterion.may_complete(output[-1])
    assert end_of(criterion, [], output) == len(output) - 1


def test_a_stop_string_that_was_passed_over_does_not_end_what_follows() -> None:
    criterion = StopStrings(("END", "a longer one"), Detokenizer(Pieces("END", "D")))
    state = criterion.advance(criterion.start(context([])), 0)
    assert criterion.may_complete(1)
    assert not criterion.ends(state, 1)
    assert criterion.ends(state, 0)


texts = st.text("ab .ENDé从💡\n", max_size=24)
stop_lists = st.lists(st.text("abEND从💡\n", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 24), max_size=8))
def test_the_end_is_the_first_token_whose_text_holds_a_stop_string(
    kind: str, text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    """Against the naive rule: decode everything after every token."""
    tokenizer = KINDS[kind]()
    borders = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(text)), len(text)]
    parts = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
    prompt = tokenizer.encode("a", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = detokenizer.pieces(prompt, ids)

    naive = [i for i in range(len(ids)) if any(stop in "".join(pieces[: i + 1]) for stop in stops)]
    assert end_of(StopStrings(stops, detokenizer), prompt, ids) == (naive[0] if naive else None)


def test_tokens_that_can_complete_nothing_are_dismissed_without_decoding() -> None:
    counting = Counting(byte_level())
    criterion = StopStrings(("\n\nUser:", "END"), Detokenizer(counting))
    state = criterion.start(context(counting.tokenizer.encode("The king")))
    vocabulary = range(len(counting.tokenizer))
    for token in vocabulary:
        criterion.ends(state, token)  # what is known of each token is learnt once

    counting.calls = 0
    for token in vocabulary:
        criterion.ends(state, token)
    assert counting.calls < len(vocabulary) * 0.5
    whole = [token for token in vocabulary if criterion._detokenizer.forms(token)]
    counting.calls = 0
    for token in whole:
        criterion.ends(state, token)
    assert counting.calls < len(whole) * 0.05


def test_states_are_values_so_forks_do_not_see_each_other() -> None:
    criterion = StopStrings(("END",), Detokenizer(Pieces("E", "N", "D", "x")))
    state = criterion.advance(criterion.advance(criterion.start(context([])), 0), 1)
    other = criterion.advance(state, 3)

    assert criterion.ends(state, 2)
    assert not criterion.ends(other, 2)
    assert isinstance(state, StopState) and hash(state) != hash(other)


def test_the_state_remembers_no_more_text_than_a_stop_string_can_span() -> None:
    criterion = StopStrings(("END", "STOP"), Detokenizer(Pieces("abcdefgh")))
    state = criterion.start(context([]))
    for _ in range(50):
        state = criterion.advance(state, 0)
    assert state.tail == "fgh"


@pytest.mark.parametrize(
    ("given_stops", "accepted"),
    [
        (["END"], ("END",)),
        ("END", ("END",)),
        (("a", "b"), ("a", "b")),
        ([], ()),
        ([""], None),
        (["a", ""], None),
        ([3], None),
    ],
)
def test_stop_strings_are_non_empty_strings(given_stops: Any, accepted: tuple[str, ...] | None) -> None:
    if accepted is None:
        with pytest.raises(OptionError, match=r"`stop_strings` must hold non-empty strings.*use None"):
            check_stops(given_stops)
    else:
        assert check_stops(given_stops) == accepted


def test_the_criterion_wants_at_least_one_stop_string() -> None:
    with pytest.raises(OptionError, match="at least one"):
        StopStrings((), Detokenizer(Pieces()))


@pytest.mark.parametrize(
    ("text", "stops", "span"),
    [
        ("xENDy", ("END",), (1, 4)),
        ("nothing", ("END",), None),
        ("abcd", ("abcd", "bc"), (1, 3)),  # complete first
        ("xabc", ("bc", "abc"), (1, 4)),  # complete at the same character: the longest
        ("b a", ("a", "b"), (0, 1)),
    ],
)
def test_of_several_stop_strings_the_one_complete_first_counts(
    text: str, stops: tuple[str, ...], span: tuple[int, int] | None
) -> None:
    assert first_stop(text, stops) == span


@pytest.mark.parametrize(
    ("pushed", "shown", "rest", "stopped"),
    [
        (["foo", "E", "N", "x"], ["foo", "", "", "ENx"], "", False),
        (["foo", "E", "N"], ["foo", "", ""], "EN", False),  # the output ends: what was held comes out
        (["foo E", "ND bar"], ["foo ", ""], "", True),  # cut before the stop string, whatever follows it
        (["foo E", "ND bar"], ["foo ", ""], "END bar", False),  # it ended for another reason
        (["EE", "ND"], ["E", ""], "", True),
        (["a", "END", "END"], ["a", "", ""], "", True),
    ],
)
def test_what_may_be_part_of_a_stop_string_waits(pushed: list[str], shown: list[str], rest: str, stopped: bool) -> None:
    hold = HoldBack(("END",))
    for text, expected in zip(pushed, shown, strict=True):
        hold, out = hold.push(text)
        assert out == expected
    assert hold.finish(stopped=stopped) == rest


def test_the_longest_possible_beginning_of_any_stop_string_waits() -> None:
    hold, shown = HoldBack(("abab", "bx")).push("ab")
    assert (hold.held, shown) == ("ab", "")
    assert hold.push("x")[1] == "a"


letters = st.text("abcd", max_size=30)
letter_stops = st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3).map(tuple)


@given(text=letters, stops=letter_stops)
def test_the_cut_does_not_depend_on_how_the_text_arrives(text: str, stops: tuple[str, ...]) -> None:
    hold, out = HoldBack(stops), ""
    for character in text:
        hold, piece = hold.push(character)
        out += piece
    at_once, all_out = HoldBack(stops).push(text)
    match = first_stop(text, stops)

    assert out + hold.finish(stopped=False) == text
    assert out + hold.finish(stopped=True) == (text if match is None else text[: match[0]])
    assert all_out + at_once.finish(stopped=True) == out + hold.finish(stopped=True)
