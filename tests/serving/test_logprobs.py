"""Log-probabilities of single tokens: end-of-sequence tokens, unlikely tokens, and characters of several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import unspool
from tests.serving.conftest import TEMPLATE, serving
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool import LanguageModel
from unspool.results.generation import TopLogprob
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.serving.answers.logprobs import CompletionLogprobs, Scored, TokenTexts

SPLIT = "国🙂ä"


@pytest.fixture(scope="module")
def split() -> Iterator[openai.OpenAI]:
    """A client of a tiny model with a byte-level tokenizer, which splits characters."""
    tokenizer = byte_level()
    model = tiny_model("gpt2", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    lm = LanguageModel(DecoderRuntime(model, owns_model=True), tokenizer)
    before, tokenizer.chat_template = tokenizer.chat_template, TEMPLATE
    with (
        serving(lm, served_model_name=("m",)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made
    tokenizer.chat_template = before


def saying(text: str, **more: Any) -> dict[str, Any]:
    """Return options of a request whose output is `text`."""
    return {"model": "m", "max_tokens": 60, "temperature": 0, "extra_body": {"choice": [text], **more}}


def test_tokens_of_split_characters_are_named_by_their_bytes(split: openai.OpenAI) -> None:
    answer = split.completions.create(prompt="x", logprobs=2, **saying(SPLIT))
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert choice.text == SPLIT and logprobs is not None
    assert logprobs.tokens and logprobs.top_logprobs and logprobs.token_logprobs and logprobs.text_offset
    parts = [token for token in logprobs.tokens if token.startswith("bytes:\\x")]
    assert len(parts) >= 6, "three characters of several tokens"
    joined = b"".join(
        bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in logprobs.tokens
    )
    assert joined.startswith(SPLIT.encode())
    for token, logprob, best in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert best[token] == logprob and len(best) in (2, 3)
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[-1] <= len(SPLIT)
    named = split.completions.create(prompt="x", logprobs=0, **saying(SPLIT, return_tokens_as_token_ids=True))
    assert named.choices[0].logprobs is not None and named.choices[0].logprobs.tokens is not None
    assert all(token.startswith("token_id:") for token in named.choices[0].logprobs.tokens)


class SameTexts(TokenTexts):
    """Texts of single tokens; all are "a"."""

    def __init__(self) -> None:
        super().__init__(None)

    def text(self, token: int, *, as_id: bool = False) -> str:
        return f"token_id:{token}" if as_id else "a"


@pytest.mark.parametrize("chosen", [4, 5, 9])
def test_tokens_with_one_text_do_not_collide(chosen: int) -> None:
    top = [TopLogprob(token_id=5, logprob=-0.5, text="a"), TopLogprob(token_id=4, logprob=-1.5, text="a")]
    logprob = {5: -0.5, 4: -1.5, 9: -7.0}[chosen]
    writer = CompletionLogprobs(SameTexts(), None, (), num_top=2)
    found = writer.add([Scored(chosen, logprob, top)])
    (best,) = found["top_logprobs"]
    others = {f"token_id:{each.token_id}": each.logprob for each in top if each.token_id != chosen}
    assert found["tokens"] == ["a"] and best == {"a": logprob, **others}, "the text names the chosen token"


def test_chat_logprobs_have_the_bytes_of_split_characters(split: openai.OpenAI) -> None:
    answer = split.chat.completions.create(
        messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=1, **saying(SPLIT)
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].message.content == SPLIT and logprobs is not None and logprobs.content is not None
    assert bytes(byte for entry in logprobs.content for byte in entry.bytes or ()).startswith(SPLIT.encode())


def test_an_end_of_sequence_token_is_in_the_arrays(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    (eos, *_) = tale.info.eos_token_ids
    answer = client.completions.create(
        model="tale", prompt="Once", max_tokens=1, temperature=0, echo=True, logprobs=1, logit_bias={str(eos): 100}
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop" and choice.text == "Once" and answer.usage is not None
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == answer.usage.prompt_tokens + 1
    assert choice.model_extra is not None and choice.model_extra["stop_reason"] == eos


def test_an_unlikely_token_is_added_to_the_best_ones(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    (unlikely,) = tale.tokenizer("zz", add_special_tokens=False)["input_ids"][-1:]
    answer = client.completions.create(
        model="tale", prompt="Once upon a", max_tokens=2, temperature=0, logprobs=2, logit_bias={str(unlikely): 100}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.top_logprobs and logprobs.tokens and logprobs.token_logprobs
    for token, logprob, best in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(best) == 3 and best[token] == logprob == min(best.values()), "the model's own, without the bias"


def test_a_bias_of_minus_100_forbids(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": "Once upon a", "max_tokens": 1, "temperature": 0}
    best = tale.generate("Once upon a", max_new_tokens=1).completions[0]
    banned = client.completions.create(**call, logit_bias={str(best.token_ids[0]): -100})
    assert banned.choices[0].text != best.text
    with pytest.raises(openai.BadRequestError, match="from -100 to 100"):
        client.completions.create(**call, logit_bias={"7": 101})
