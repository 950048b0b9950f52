"""Text comes out whole, is never taken back, and reads as the tokenizer itself would write it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.tokenizers import (
    MIXED,
    ContinuationTokenizer,
    Counting,
    byte_fallback,
    byte_level,
    word_piece,
)
from unspool.text.detokenize import MAX_CONTEXT, MAX_PENDING, REPLACEMENT, Detokenizer

KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word piece": word_piece}

ordinary = st.text(st.sampled_from("".join(MIXED) + "ßжक్ि한\u0300💡🏳️\u200d🌈"), max_size=40)
kinds = pytest.mark.parametrize("kind", KINDS)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def written(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def text_after(tokenizer: Any, prompt: list[int], output: list[int]) -> str:
    return "".join(Detokenizer(tokenizer).pieces(prompt, output))


@kinds
@given(prompt=ordinary, output=ordinary)
def test_prompt_and_text_read_as_the_tokenizer_writes_both_at_once(kind: str, prompt: str, output: str) -> None:
    tokenizer = KINDS[kind]()
    before, after = ids_of(tokenizer, prompt), ids_of(tokenizer, output)

    text = text_after(tokenizer, before, after)
    assert written(tokenizer, before) + text == written(tokenizer, before + after)


@given(prompt=ordinary, output=ordinary)
def test_a_byte_level_round_trip_returns_the_very_text(prompt: str, output: str) -> None:
    tokenizer = byte_level()
    assert text_after(tokenizer, ids_of(tokenizer, prompt), ids_of(tokenizer, output)) == output


@given(output=st.lists(st.integers(0, len(byte_level()) - 1), max_size=60))
def test_any_byte_level_tokens_at_all_give_the_text_of_the_tokenizer(output: list[int]) -> None:
    tokenizer = byte_level()
    prompt = ids_of(tokenizer, "Once")
    assert "Once" + text_after(tokenizer, prompt, output) == written(tokenizer, prompt + output)


@kinds
@given(text=ordinary)
def test_no_piece_shows_a_replacement_character_that_the_text_does_not_have(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    pieces = Detokenizer(tokenizer).pieces(ids_of(tokenizer, "a"), ids_of(tokenizer, text))
    assert REPLACEMENT not in "".join(pieces)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_an_emoji_of_several_tokens_appears_at_once_with_its_last_token(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = ids_of(tokenizer, "a💡b")
    pieces = Detokenizer(tokenizer).pieces(ids_of(tokenizer, "x"), ids)

    assert "".join(pieces).lstrip() == "a💡b"
    assert [piece.strip() for piece in pieces if piece.strip()] == ["a", "💡", "b"]
    assert pieces.count("") >= 2


@kinds
def test_the_space_between_prompt_and_first_word_stays(kind: str) -> None:
    tokenizer = KINDS[kind]()
    whole, prompt = ids_of(tokenizer, "the king was fair"), ids_of(tokenizer, "the king")
    assert whole[: len(prompt)] == prompt
    assert text_after(tokenizer, prompt, whole[len(prompt) :]) == " was fair"


def test_special_tokens_vanish_unless_asked_for() -> None:
    tokenizer = byte_level()
    end, turn = tokenizer.convert_tokens_to_ids(["<|end|>", "<|turn|>"])
    output = [turn, *ids_of(tokenizer, " fair"), end]

    assert "".join(Detokenizer(tokenizer).pieces([], output)) == " fair"
    shown = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(shown.pieces([], output)) == "<|turn|> fair<|end|>"


@pytest.mark.parametrize("times", [1, 30])
def test_special_tokens_inside_a_character_do_not_break_it(times: int) -> None:
    tokenizer = byte_level()
    first, *rest = ids_of(tokenizer, "💡")
    between = [tokenizer.eos_token_id] * times
    assert text_after(tokenizer, [], [first, *between, *rest]) == "💡"
    assert text_after(tokenizer, [first], [*between, *rest]) == "💡"


def test_tokens_without_any_text_do_not_crowd_out_the_word_before_them() -> None:
    tokenizer = byte_fallback()
    the, king = (ids_of(tokenizer, word)[-1] for word in ("the", "the king"))
    beyond = len(tokenizer) + 3
    assert tokenizer.decode([beyond], skip_special_tokens=False) == ""
    assert text_after(tokenizer, [the], [*[beyond] * 30, king]) == " king"


@given(output=st.lists(st.integers(0, len(byte_level()) - 1), max_size=40))
def test_the_short_way_for_byte_level_tokens_gives_what_the_long_way_gives(output: list[int]) -> None:
    tokenizer = byte_level()
    long_way = Detokenizer(Counting(tokenizer))
    assert Detokenizer(tokenizer).pieces([], output) == long_way.pieces([], output)


def test_byte_level_tokens_of_whole_characters_are_decoded_once_and_for_all() -> None:
    tokenizer = byte_level()
    counting = Counting(tokenizer)
    counting.backend_tokenizer = tokenizer.backend_tokenizer
    detokenizer, ids = Detokenizer(counting), ids_of(tokenizer, MIXED[0])
    detokenizer.pieces([], ids)
    counting.calls = 0
    assert "".join(detokenizer.pieces([], ids)) == MIXED[0]
    assert counting.calls == 1  # of the empty prompt


def test_special_tokens_at_the_end_of_the_prompt_do_not_hide_the_word_before_them() -> None:
    tokenizer = byte_fallback()
    prompt = ids_of(tokenizer, "the king") + [tokenizer.eos_token_id] * 30
    output = ids_of(tokenizer, "the king was")[len(ids_of(tokenizer, "the king")) :]
    assert text_after(tokenizer, prompt, output) == " was"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_character_that_the_prompt_leaves_unfinished_is_finished_by_the_output(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = ids_of(tokenizer, "a💡💡b")
    for cut in range(1, len(ids)):
        done = tokenizer.decode(ids[:cut]).rstrip(REPLACEMENT)
        assert done + text_after(tokenizer, ids[:cut], ids[cut:]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_bytes_that_never_become_a_character_come_out_once_that_is_certain(kind: str) -> None:
    tokenizer = KINDS[kind]()
    detokenizer = Detokenizer(tokenizer)
    broken = ids_of(tokenizer, "💡")[-4 if kind == "byte fallback" else 0]
    follow = ids_of(tokenizer, "xb")[-1]
    state, text = detokenizer.advance(detokenizer.start(ids_of(tokenizer, "a")), broken)

    assert text == ""
    assert detokenizer.flush(state) == REPLACEMENT
    assert detokenizer.advance(state, follow)[1] == REPLACEMENT + tokenizer.decode([follow])


def test_good_characters_before_a_bad_byte_stay_although_the_decoder_would_spoil_them() -> None:
    """A run of byte tokens with one bad byte decodes to U+FFFD throughout; what was shown is not taken back."""
    tokenizer = byte_fallback()
    good, bad = ids_of(tokenizer, "从")[-3:], tokenizer.convert_tokens_to_ids("<0xF0>")
    follow = tokenizer.convert_tokens_to_ids("e")

    assert tokenizer.decode([*good, bad, follow]) == REPLACEMENT * 4 + "e"
    assert text_after(tokenizer, [], [*good, bad, follow, *good]) == f"从{REPLACEMENT}e从"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_genuine_replacement_character_blocks_nothing_for_long(kind: str) -> None:
    tokenizer = KINDS[kind]()
    detokenizer = Detokenizer(tokenizer)
    ids = ids_of(tokenizer, "a" + REPLACEMENT * 40)
    state, text = detokenizer.start([]), ""
    for token in ids:
        state, piece = detokenizer.advance(state, token)
        text += piece
        assert len(state.pending) <= MAX_PENDING
    assert text.count(REPLACEMENT) >= 40 - MAX_PENDING
    assert text + detokenizer.flush(state) == tokenizer.decode(ids)


def test_text_before_an_unfinished_character_in_one_token_is_shown() -> None:
    class Pieces:
        parts = (b"ab\xf0", b"\x9f\x92\xa1", b"c")

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return b"".join(self.parts[i] for i in ids).decode(errors="replace")

    assert Detokenizer(Pieces()).pieces([], [0, 1, 2]) == ("ab", "💡", "c")


def test_a_piece_that_the_next_token_continues_waits_for_it() -> None:
    tokenizer = ContinuationTokenizer(["once", "hel@@", "lo", "@@"])
    assert Detokenizer(tokenizer).pieces([0], [1, 2, 0, 1, 1, 2, 1]) == (
        " hel",
        "lo",
        " once",
        " hel",
        "hel",
        "lo",
        " hel@@",
    )
    assert text_after(tokenizer, [0, 1], [2]) == "lo"


def test_two_at_signs_wait_for_nothing_where_they_are_just_text() -> None:
    class Pieces:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return "".join(("a", "@@", "b")[i] for i in ids)

    assert Detokenizer(Pieces()).pieces([], [0, 1, 1, 2]) == ("a", "@@", "@@", "b")


def test_cleaned_contractions_come_out_as_the_tokenizer_writes_them() -> None:
    tokenizer = word_piece(clean=True)
    for line in MIXED[:3]:
        ids = ids_of(tokenizer, line)
        for cut in (0, 1, 2):
            whole = tokenizer.decode(ids[:cut]) + text_after(tokenizer, ids[:cut], ids[cut:])
            assert whole == tokenizer.decode(ids)
    assert "king's" in tokenizer.decode(ids_of(tokenizer, MIXED[1]))


@given(text=ordinary, left=ordinary, right=ordinary)
def test_forks_of_a_state_go_their_own_ways(text: str, left: str, right: str) -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer)
    common = ids_of(tokenizer, text + "💡")[:-1]
    state = detokenizer.start(common)

    def finish(output: list[int]) -> str:
        branch, out = state, ""
        for token in output:
            branch, piece = detokenizer.advance(branch, token)
            out += piece
        return out + detokenizer.flush(branch)

    ways = [ids_of(tokenizer, left), ids_of(tokenizer, right)]
    apart = ["".join(Detokenizer(tokenizer).pieces(common, way)) for way in ways]
    assert [finish(way) for way in ways] == apart
    assert [finish(way) for way in reversed(ways)] == apart[::-1]


@kinds
def test_a_token_costs_the_same_however_long_the_text_is(kind: str) -> None:
    counting = Counting(KINDS[kind]())
    detokenizer = Detokenizer(counting)
    ids = ids_of(counting.tokenizer, " ".join(MIXED)) * 8
    detokenizer.pieces([], ids)  # what is known of single tokens is learnt once

    def cost(output: list[int]) -> tuple[float, float]:
        counting.calls = counting.ids = counting.longest = 0
        state = detokenizer.start(ids)
        for token in output:
            state, _ = detokenizer.advance(state, token)
        assert counting.longest <= MAX_CONTEXT + MAX_PENDING + 1
        return counting.calls / len(output), counting.ids / len(output)

    (calls, read), (calls_long, read_long) = cost(ids[: len(ids) // 8]), cost(ids)
    assert calls_long <= calls * 1.1 and read_long <= read * 1.1
    assert calls_long < 2 and read_long < MAX_CONTEXT + MAX_PENDING


def test_even_garbage_costs_a_bounded_number_of_tokens_to_read() -> None:
    counting = Counting(byte_level())
    detokenizer = Detokenizer(counting)
    state = detokenizer.start([])
    for _ in range(300):
        state, _ = detokenizer.advance(state, ids_of(counting.tokenizer, "💡")[1])
        assert len(state.context) <= MAX_CONTEXT
        assert len(state.pending) <= MAX_PENDING
    assert counting.longest <= MAX_CONTEXT + MAX_PENDING + 1
    assert counting.calls < 300 * 5


def test_the_tokenizers_library_serves_as_well_as_transformers() -> None:
    wrapped = byte_level()
    ids = ids_of(wrapped, MIXED[6])
    assert text_after(wrapped.backend_tokenizer, [], ids) == MIXED[6]


@pytest.mark.parametrize(
    ("kind", "text", "forms"),
    [
        ("byte level", " king", (" king", " king")),
        ("byte fallback", "king", ("king", " king")),
        ("word piece", "king", ("king", " king")),
    ],
)
def test_forms_tell_what_a_token_adds_first_and_later(kind: str, text: str, forms: tuple[str, str]) -> None:
    tokenizer = KINDS[kind]()
    (token,) = ids_of(tokenizer, text)
    assert Detokenizer(tokenizer).forms(token) == forms


def test_there_are_no_forms_of_part_of_a_character() -> None:
    tokenizer = byte_level()
    assert Detokenizer(tokenizer).forms(ids_of(tokenizer, "💡")[0]) == ()


def test_there_are_no_forms_where_the_next_token_may_change_the_end() -> None:
    tokenizer = word_piece(clean=True)
    token = tokenizer.convert_tokens_to_ids("n")
    assert Detokenizer(tokenizer).forms(token) == ()
    assert Detokenizer(word_piece()).forms(token) == ("n", " n")
    assert Detokenizer(ContinuationTokenizer(["hel@@"])).forms(0) == ()
