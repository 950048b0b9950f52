"""Masks against brute force, and the phases of a state."""

from __future__ import annotations

import numpy as np
import pytest

from tests.grammars.toys import END, LETTERS, compiled, texts_of
from tests.processors.support import context
from unspool.grammars.state import GrammarState

EOS = LETTERS.index(END)


def start(eos: tuple[int, ...] = (EOS,), prompt: tuple[int, ...] = (0, 0), **option: object) -> GrammarState:
    forced = option.pop("forced_bos_token_id", None)
    full = context(prompt, vocab_size=len(LETTERS), eos=eos, forced_bos_token_id=forced)
    return compiled(**option).start(full)


def allowed(state: GrammarState) -> set[int]:
    """Return the tokens that the mask allows."""
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
    return set(np.nonzero(bits)[0].tolist())


@pytest.mark.parametrize("pattern", ["(ab|a)(c|bcd)?", "a{1,3}b?", "[ab]{2}(-[ab]{2})?", "(abc|ab|a)-(c|bc)"])
def test_every_mask_of_a_language_is_the_set_of_tokens_that_can_continue_its_texts(pattern: str) -> None:
    whole = set(texts_of(pattern, "abcd-", 6))
    prefixes = {text[:size] for text in whole for size in range(len(text) + 1)}
    waiting = [("", start(regex=pattern))]
    checked = 0
    while waiting:
        text, state = waiting.pop()
        following = {index for index, token in enumerate(LETTERS) if index != EOS and text + token in prefixes}
        assert allowed(state) == following | ({EOS} if text in whole else set()), text
        assert state.is_complete is (text in whole)
        for token in following:
            child = state.fork()
            child.advance(token)
            waiting.append((text + LETTERS[token], child))
        checked += 1
    assert checked > 5


def test_a_fork_and_its_parent_go_their_own_ways() -> None:
    parent = start(regex="ab|ba")
    child = parent.fork()
    child.advance(LETTERS.index("b"))
    assert allowed(parent) == {LETTERS.index("a"), LETTERS.index("ab"), LETTERS.index("b")}
    assert allowed(child) == {LETTERS.index("a")}


def test_the_requests_end_tokens_replace_the_tokenizers_own() -> None:
    """The token "-" ends the request's texts, so it is allowed only after a whole text."""
    dash = LETTERS.index("-")
    state = start(eos=(dash,), regex="a-?")
    assert allowed(state) == {LETTERS.index("a")}
    state.advance(LETTERS.index("a"))
    assert allowed(state) == {dash}
    state.advance(dash)
    assert state.is_complete and state.phase == "ended"


def test_two_end_tokens_are_both_allowed_after_a_whole_text_alone() -> None:
    state = start(eos=(EOS, LETTERS.index("d")), regex="a")
    state.advance(LETTERS.index("a"))
    assert allowed(state) == {EOS, LETTERS.index("d")}


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_token_outside_the_grammar_ends_the_masks_and_never_completes_a_text(is_masked: bool) -> None:
    """A draft can be outside the grammar; a mask that was computed before answers for its own place only."""
    state = start(regex="ab")
    if is_masked:
        state.mask()
    state.advance(LETTERS.index("c"))
    assert state.phase == "left" and not state.is_complete
    assert allowed(state) >= set(range(len(LETTERS)))
    state.advance(LETTERS.index("a"))
    assert state.phase == "left"


def test_an_end_token_before_the_text_is_whole_leaves_the_grammar() -> None:
    state = start(regex="ab")
    state.advance(EOS)
    assert state.phase == "left" and not state.is_complete


def test_a_forced_special_token_comes_before_the_text() -> None:
    """BART begins its outputs with a special token that `forced_bos_token_id` names."""
    state = start(prompt=(0,), forced_bos_token_id=EOS, regex="ab?")
    assert allowed(state) == {EOS}
    state.advance(EOS)
    assert allowed(state) == {LETTERS.index("a"), LETTERS.index("ab")}


def test_a_forced_token_with_text_is_part_of_the_text() -> None:
    state = start(prompt=(0,), forced_bos_token_id=LETTERS.index("b"), regex="ab?")
    assert allowed(state) == {LETTERS.index("a"), LETTERS.index("ab")}


def test_a_forced_special_token_applies_to_a_prompt_of_one_token_only() -> None:
    state = start(prompt=(0, 0), forced_bos_token_id=EOS, regex="ab?")
    assert allowed(state) == {LETTERS.index("a"), LETTERS.index("ab")}
