"""Beams as a stream: committed text as ever, and between it what the leading beam holds beyond."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given

from tests.speakers import recite
from tests.text.test_emit import DETOKENIZERS, KINDS, reasons, stop_lists, token_lists
from tests.text.tokenizers import byte_level
from tests.toys import request
from unspool import Chunk, LanguageModel
from unspool.planning import PlannedRequest
from unspool.streaming import Listener
from unspool.text.detokenize import REPLACEMENT, Detokenizer
from unspool.text.emit import TextEmitter
from unspool.types import Committed, Tentative

PROMPT = "Once upon"


def encode(text: str) -> tuple[int, ...]:
    return tuple(byte_level()(text)["input_ids"])


def listener(**options: Any) -> Listener:
    wanted = request(encode(PROMPT), num_beams=2, max_new_tokens=50, **options)
    job = PlannedRequest(request=wanted, prompt_text=PROMPT, config=wanted.config)
    return Listener(job, 0, Detokenizer(byte_level()))


def committed(*token_ids: int, reason: str | None = None) -> Committed:
    return Committed(request=0, output=0, token_ids=token_ids, logprobs=(0.0,) * len(token_ids), finish_reason=reason)


def tentative(*token_ids: int) -> Tentative:
    return Tentative(request=0, output=0, token_ids=token_ids)


def said(chunk: Chunk) -> tuple[str, str | None]:
    return chunk.text, chunk.tentative


def test_a_tail_is_replaced_shortened_by_what_is_committed_and_gone_at_the_end() -> None:
    heard = listener()
    a, man, king, was = (encode(word)[0] for word in (" a", " and", " king", " was"))
    update = heard.chunk(tentative(a, man))
    assert said(update) == ("", " a and")
    assert (update.token_ids, update.logprobs, update.finish_reason) == ((), (), None)
    assert said(heard.chunk(tentative(a, king))) == ("", " a king")
    assert said(heard.chunk(committed(a))) == (" a", " king")
    assert said(heard.chunk(tentative(king))) == ("", None), "nothing new to say"
    assert said(heard.chunk(tentative(king, was))) == ("", " king was")
    assert said(heard.chunk(committed(man))) == (" and", ""), "another branch has won"
    assert said(heard.chunk(tentative(king))) == ("", " king")
    assert said(heard.chunk(committed(king, was, reason="length"))) == (" king was", "")


def test_without_tentative_events_chunks_say_nothing_of_a_tail() -> None:
    heard = listener()
    assert said(heard.chunk(committed(*encode(" a")))) == (" a", None)
    assert said(heard.chunk(committed(*encode(" king"), reason="eos"))) == (" king", None)


def test_a_tail_goes_on_with_the_bytes_of_a_committed_character() -> None:
    heard, fox = listener(), encode("🙂")
    assert len(fox) > 1
    assert said(heard.chunk(committed(*encode("a"), *fox[:1]))) == ("a", None)
    assert said(heard.chunk(tentative(*fox[1:], *encode("!")))) == ("", "🙂!")
    assert said(heard.chunk(tentative(*fox[1:-1]))) == ("", ""), "a part of a character is none"


def test_a_tail_holds_what_may_become_a_stop_string_and_ends_before_a_whole_one() -> None:
    heard = listener(stop_strings=["END"])
    assert said(heard.chunk(committed(*encode("so E")))) == ("so ", None)
    assert said(heard.chunk(tentative(*encode("at")))) == ("", "Eat")
    assert said(heard.chunk(tentative(*encode("ND it")))) == ("", "")
    assert said(heard.chunk(tentative())) == ("", "E")
    assert said(heard.chunk(committed(*encode("ND"), reason="stop"))) == ("", "")


def test_echo_comes_before_the_first_tail() -> None:
    heard = listener(echo=True)
    assert said(heard.chunk(tentative(*encode(" a")))) == (PROMPT, " a")
    assert said(heard.chunk(committed(*encode(" a")))) == (" a", "")


def test_without_a_tokenizer_a_tail_has_no_text() -> None:
    wanted = request([1], num_beams=2, max_new_tokens=5)
    job = PlannedRequest(request=wanted, prompt_text=None, config=wanted.config)
    heard = Listener(job, 0, None)
    assert said(heard.chunk(tentative(3, 4))) == ("", None)
    assert said(heard.chunk(committed(3))) == ("", None)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=token_lists, first=token_lists, rest=token_lists, stops=stop_lists, reason=reasons)
def test_the_tail_is_what_comes_out_if_its_tokens_do(
    kind: str, prompt: list[int], first: list[int], rest: list[int], stops: tuple[str, ...], reason: str
) -> None:
    """Whatever is held back at the time. Unfinished characters apart: a tail shows none."""
    emitter = TextEmitter(DETOKENIZERS[kind], prompt, stops=stops)
    emitter.push(first)
    tail = emitter.tentative(rest)
    assert tail == emitter.tentative(rest), "asking changes nothing"
    outcome = emitter.push(rest) + emitter.finish("stop")
    assert outcome in (tail, tail + REPLACEMENT * (len(outcome) - len(tail)))
    # Before a stop string, bytes that made no character are as certain as the rest.
    assert outcome == tail or not tail.endswith(REPLACEMENT)


TALES = (
    "Once upon a time there was a king 🙂. END",
    "Once upon a day 从前 she was fair.",
    "Why? They've tried; I'm sure.",
)


def shown(chunks: list[Chunk]) -> list[str]:
    """What a reader sees after each chunk: the text so far, and the tail."""
    screens, text, tail = [], "", ""
    for chunk in chunks:
        text += chunk.text
        tail = tail if chunk.tentative is None else chunk.tentative
        screens.append(text + tail)
    assert tail == ""
    return screens


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stops", [None, ["END"]])
@pytest.mark.parametrize("steps", [None, 2])
def test_tails_change_nothing_else_of_a_stream(echo: bool, stops: list[str] | None, steps: int | None) -> None:
    lm = recite(*TALES)
    options = {"num_beams": 3, "stop_strings": stops, "echo": echo, "lookahead_steps": steps}
    plain = list(lm.stream("x\n", **options))
    stream = lm.stream("x\n", tentative=True, **options)
    chunks = list(stream)
    assert all(chunk.tentative is None for chunk in plain)
    assert [c.token_ids for c in chunks if c.token_ids] == [c.token_ids for c in plain if c.token_ids]
    assert "".join(c.text for c in chunks) == "".join(c.text for c in plain) == stream.generation.text
    assert chunks[-1].is_last and [c.is_last for c in chunks].count(True) == 1

    screens = shown(chunks)
    assert len(screens) > len(plain)
    assert screens[-1] == stream.generation.text
    assert not any("END" in screen for screen in screens) or not stops
    assert not any(REPLACEMENT in screen for screen in screens)
    # A tail reads on from the text: what a reader sees is always the beginning of something the model would say.
    prefix = "x\n" if echo else ""
    assert all(any((prefix + tale).startswith(screen) for tale in TALES) for screen in screens)


def test_greedy_and_sampled_outputs_have_no_tail() -> None:
    lm = recite(*TALES)
    for options in ({}, {"do_sample": True, "seed": 1}, {"num_beams": 3, "lookahead_steps": 1}):
        assert all(not chunk.tentative for chunk in lm.stream("x\n", tentative=True, **options)), options


def test_two_prompts_have_tails_of_their_own() -> None:
    lm = recite(*TALES)
    stream = lm.stream(["x\n", "y\n"], num_beams=3, tentative=True)
    chunks = list(stream)
    for prompt, generation in enumerate(stream.generations):
        own = [chunk for chunk in chunks if chunk.prompt == prompt]
        assert any(chunk.tentative for chunk in own)
        assert generation is not None and shown(own)[-1] == generation.text


def test_tails_come_to_async_readers_too() -> None:
    def chunks_of(lm: LanguageModel) -> list[Chunk]:
        async def read() -> list[Chunk]:
            return [chunk async for chunk in lm.astream("x\n", num_beams=3, tentative=True)]

        return asyncio.run(read())

    assert chunks_of(recite(*TALES)) == list(recite(*TALES).stream("x\n", num_beams=3, tentative=True))
