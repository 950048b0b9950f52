"""The field `suffix`: fill in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.conftest import serving
from tests.text.test_infill import SPECIAL, with_tokens
from tests.tiny_models import tiny_model
from unspool import LanguageModel
from unspool.runtimes.decoder.runtime import DecoderRuntime

CALL: dict[str, Any] = {"model": "m", "prompt": "Once upon", "suffix": " a king", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A tiny model with the tokens of Qwen2.5-Coder."""
    tokenizer = with_tokens(*SPECIAL["Qwen2.5-Coder"])
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return LanguageModel(DecoderRuntime(model, owns_model=True), tokenizer)


@pytest.fixture(scope="module")
def client(lm: LanguageModel) -> Iterator[openai.OpenAI]:
    with (
        serving(lm, served_model_name=("m",)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def test_the_gap_is_filled_behind_the_prompt_of_the_model_card(client: openai.OpenAI, lm: LanguageModel) -> None:
    prompt = "<|fim_prefix|>Once upon<|fim_suffix|> a king<|fim_middle|>"
    ends = [lm.tokenizer.convert_tokens_to_ids(text) for text in ("<|end|>", *SPECIAL["Qwen2.5-Coder"])]
    expected = lm.generate(prompt, max_new_tokens=6, eos_token_id=ends)
    answer = client.completions.create(**CALL, extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    assert choice.text == expected.text
    assert (choice.model_extra or {})["prompt_token_ids"] == list(expected.prompt_token_ids)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    streamed = client.completions.create(**CALL, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected.text
    ids = lm.tokenizer("Once upon")["input_ids"]
    both = client.completions.create(**{**CALL, "prompt": [ids, ids]})
    assert [each.text for each in both.choices] == [expected.text] * 2


def test_the_tokens_of_the_format_end_an_answer(client: openai.OpenAI, lm: LanguageModel) -> None:
    pad = lm.tokenizer.convert_tokens_to_ids("<|fim_pad|>")
    bias: dict[str, int] = {str(pad): 100}
    ended = client.completions.create(**CALL, logit_bias=bias)
    assert ended.choices[0].finish_reason == "stop" and ended.choices[0].text == ""
    plain = client.completions.create(**{**CALL, "suffix": ""}, logit_bias=bias)
    assert plain.choices[0].finish_reason == "length", "without a suffix it is a token as any other"


def test_echo_and_truncation_are_refused_beside_a_suffix(client: openai.OpenAI) -> None:
    for more in ({"echo": True}, {"extra_body": {"truncate_prompt_tokens": 4}}):
        with pytest.raises(openai.BadRequestError, match="cannot be combined") as caught:
            client.completions.create(**CALL, **more)
        assert caught.value.param == "suffix"
