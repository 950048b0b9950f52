"""Streamed or at once, the text is the same; and what is shown is never taken back."""

from __future__ import annotations

from functools import cache
from itertools import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.tokenizers import MIXED, byte_fallback, byte_level, word_piece
from unspool.text.detokenize import REPLACEMENT, Detokenizer
from unspool.text.emit import TextEmitter, text_of
from unspool.text.stops import first_stop

KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word piece": word_piece}
DETOKENIZERS = {kind: Detokenizer(build()) for kind, build in KINDS.items()}
SIZE = min(len(build()) for build in KINDS.values())

token_lists = st.lists(st.integers(0, SIZE - 1), max_size=40)
stop_lists = st.lists(st.text("aeENDth 从💡", min_size=1, max_size=3), max_size=3).map(tuple)
reasons = st.sampled_from(["eos", "stop", "length", "time", "mine"])


@pytest.mark.parametrize("kind", KINDS)
@given(
    prompt=token_lists,
    output=token_lists,
    stops=stop_lists,
    reason=reasons,
    sizes=st.lists(st.integers(1, 5), min_size=40, max_size=40),
)
def test_pieces_joined_are_the_final_text(
    kind: str, prompt: list[int], output: list[int], stops: tuple[str, ...], reason: str, sizes: list[int]
) -> None:
    """Any tokens, in pushes of any size."""
    detokenizer = DETOKENIZERS[kind]
    emitter = TextEmitter(detokenizer, prompt, stops=stops)
    shown, rest = [], list(output)
    for size in sizes:
        shown.append(emitter.push(rest[:size]))
        rest = rest[size:]
    shown.append(emitter.finish(reason))

    final = text_of(detokenizer, prompt, token_ids=output, finish_reason=reason, stops=stops)
    whole = "".join(detokenizer.pieces(prompt, output))
    written, visible = written_of(detokenizer, prompt, output)
    match = first_stop(written, stops)
    assert "".join(shown) == final
    assert final == ("".join(compress(written[: match[0]], visible)) if match and reason == "stop" else whole)


def written_of(detokenizer: Detokenizer, prompt: list[int], output: list[int]) -> tuple[str, list[bool]]:
    """Return the text with special tokens at their places, and for each character whether it is visible."""
    special = {token: text for token in range(SIZE) if (text := special_text(detokenizer, token))}
    state, written, visible = detokenizer.start(prompt), "", []
    for token in output:
        state, text = detokenizer.advance(state, token)
        written += text + special.get(token, "")
        visible += [True] * len(text) + [False] * len(special.get(token, ""))
    rest = detokenizer.flush(state)
    return written + rest, visible + [True] * len(rest)


@cache
def special_text(detokenizer: Detokenizer, token: int) -> str:
    """Return the text of a special token behind other text; "" for other tokens."""
    tokenizer = detokenizer.tokenizer
    if token not in tokenizer.all_special_ids:
        return ""
    (letter,) = tokenizer.encode("a", add_special_tokens=False)
    return tokenizer.decode([letter, token]).removeprefix(tokenizer.decode([letter]))


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("".join(MIXED)), max_size=30), stops=stop_lists)
def test_nothing_of_the_stop_string_is_ever_shown(kind: str, text: str, stops: tuple[str, ...]) -> None:
    detokenizer = DETOKENIZERS[kind]
    output = KINDS[kind]().encode(text, add_special_tokens=False)
    whole = "".join(detokenizer.pieces([], output))
    match = first_stop(whole, stops)
    emitter, shown = TextEmitter(detokenizer, [], stops=stops), ""
    for token in output:
        shown += emitter.push([token])
        assert len(shown) <= (len(whole) if match is None else match[0])
        assert whole.startswith(shown)
        assert REPLACEMENT not in shown


def test_a_stop_string_over_several_tokens_is_cut_with_all_that_follows_it() -> None:
    tokenizer = byte_level()
    output = tokenizer.encode("The king laughed.\n\nUser: begins")
    emitter = TextEmitter(Detokenizer(tokenizer), [], stops=("\n\nUser:",))
    shown = [emitter.push([token]) for token in output]

    assert "".join(shown) == "The king laughed."
    assert emitter.finish("stop") == ""


def test_a_stop_string_that_did_not_end_the_output_stays_in_the_text() -> None:
    tokenizer = byte_level()
    output = tokenizer.encode("so END it")
    for reason, text in [("stop", "so "), ("length", "so END it"), ("eos", "so END it")]:
        assert text_of(Detokenizer(tokenizer), [], token_ids=output, finish_reason=reason, stops=("END",)) == text, (
            reason
        )


def test_an_unfinished_character_comes_out_with_the_end() -> None:
    tokenizer = byte_level()
    emitter = TextEmitter(Detokenizer(tokenizer), [])
    assert emitter.push(tokenizer.encode("a💡")[:-1]) == "a"
    assert emitter.finish("length") == REPLACEMENT


def test_the_end_of_sequence_token_adds_no_text() -> None:
    tokenizer = byte_level()
    emitter = TextEmitter(Detokenizer(tokenizer), tokenizer.encode("Once"))
    assert emitter.push([*tokenizer.encode(" upon"), tokenizer.eos_token_id]) + emitter.finish("eos") == " upon"
