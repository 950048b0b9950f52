"""Streamers get the prompt, every token once and in order, then the end; from beams too, and where a call fails."""

from __future__ import annotations

import asyncio
import functools
from threading import Thread
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool.errors import OptionError
from unspool.interop.streaming import Columns

TOKENIZER = byte_level()
MODEL = tiny_model("llama", vocab_size=420, seed=5)
PROMPT = TOKENIZER(["Once upon a"], return_tensors="pt").input_ids
BATCH = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ends += 1


def collected(generate: Any, **options: Any) -> str:
    """Return what a TextIteratorStreamer yields while `generate` runs in a thread."""
    streamer = transformers.TextIteratorStreamer(TOKENIZER, timeout=60)
    thread = Thread(target=generate, args=(PROMPT,), kwargs={**options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text


def ours(*args: Any, **options: Any) -> Any:
    return unspool.generate(MODEL, *args, **options)


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_streamers_print_the_same(skip_prompt: bool, capsys: pytest.CaptureFixture[str]):
    printed = []
    for generate in (MODEL.generate, ours):
        generate(PROMPT, streamer=transformers.TextStreamer(TOKENIZER, skip_prompt=skip_prompt), max_new_tokens=15)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


def test_every_put_is_the_same_as_in_transformers():
    for options in ({}, {"do_sample": True, "top_k": 1}, {"eos_token_id": list(range(100, 200))}):
        expected, found = Heard(), Heard()
        MODEL.generate(PROMPT, streamer=expected, max_new_tokens=8, pad_token_id=0, **options)
        ours(PROMPT, streamer=found, max_new_tokens=8, pad_token_id=0, **options)
        assert len(found.values) == len(expected.values) and found.ends == expected.ends == 1
        for one, other in zip(found.values, expected.values, strict=True):
            assert one.equal(other) and one.dtype == other.dtype


def test_several_rows_come_side_by_side():
    expected, found = Heard(), Heard()
    options: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": list(range(100, 200)), "pad_token_id": 0}
    MODEL.generate(BATCH, attention_mask=(BATCH != 0).long(), streamer=expected, **options)
    sequences = ours(BATCH, streamer=found, **options)
    assert [value.tolist() for value in found.values] == [value.tolist() for value in expected.values]
    assert torch.stack(found.values[1:], 1).equal(sequences[:, 4:])
    assert {len(row[row != 0]) for row in sequences[:, 4:]} != {9}, "a row has to end early"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 3, "lookahead_steps": 1},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 3, "do_sample": True, "seed": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": True, "best_of": 3, "num_return_sequences": 2, "seed": 5},
    ],
    ids=str,
)
def test_the_stream_of_any_strategy_is_what_is_returned(options: dict[str, Any]):
    heard = Heard()
    sequences = ours(
        PROMPT, streamer=heard, max_new_tokens=12, pad_token_id=0, eos_token_id=[*range(50, 80)], **options
    )
    assert heard.values[0].equal(PROMPT.repeat(options.get("num_return_sequences", 1), 1)) and heard.ends == 1
    assert torch.stack(heard.values[1:], 1).equal(sequences[:, PROMPT.shape[1] :])


def test_beams_stream_before_they_are_done():
    """The first tokens are handed out while the search goes on."""
    streamer, known = Heard(), []

    class Count(transformers.StoppingCriteria):
        def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
            known.append(len(streamer.values) - 1)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    ours(PROMPT, streamer=streamer, max_new_tokens=20, num_beams=2, eos_token_id=None, stopping_criteria=[Count()])
    assert known[0] == 0 and 0 < known[-1] < 20 and sorted(known) == known


def test_an_iterator_in_a_thread_yields_the_text():
    options = {"max_new_tokens": 12, "pad_token_id": 0}
    assert collected(ours, **options) == collected(MODEL.generate, **options)
    beams = ours(PROMPT, num_beams=3, **options)[0]
    assert collected(ours, num_beams=3, **options) == TOKENIZER.decode(beams)


def test_an_async_iterator_yields_the_text():
    async def text_of(generate: Any) -> str:
        streamer = transformers.AsyncTextIteratorStreamer(TOKENIZER, timeout=60)
        thread = Thread(target=generate, args=(PROMPT,), kwargs={"streamer": streamer, "max_new_tokens": 9})
        thread.start()
        text = "".join([piece async for piece in streamer])
        thread.join()
        return text

    assert asyncio.run(text_of(ours)) == asyncio.run(text_of(MODEL.generate))


@pytest.mark.parametrize("options", [{"top_kk": 3}, {"logits_processor": [lambda ids, scores: 1 / 0]}], ids="-".join)
def test_nobody_waits_for_the_end_of_a_call_that_failed(options: dict[str, Any]):
    errors: list[BaseException] = []

    def failing(*args: Any, **given: Any) -> None:
        try:
            ours(*args, **given)
        except Exception as error:
            errors.append(error)

    assert collected(failing, **options) in ("", TOKENIZER.decode(PROMPT[0]))
    assert isinstance(errors[0], OptionError | ZeroDivisionError)


def test_a_streamer_that_raises_ends_the_call_and_hears_the_end():
    class Full(Heard):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.values) == 3:
                raise OSError("full")

    streamer = Full()
    with pytest.raises(OSError, match="full"):
        ours(PROMPT, streamer=streamer, max_new_tokens=10)
    assert len(streamer.values) == 3 and streamer.ends == 1
    with pytest.raises(ValueError, match="batch size 1"):
        ours(BATCH, streamer=transformers.TextStreamer(TOKENIZER))
    assert ours(PROMPT, max_new_tokens=3).shape[1] == PROMPT.shape[1] + 3


@pytest.mark.parametrize("streamer", [object(), print, "text"])
def test_what_has_no_put_and_end_is_refused(streamer: Any):
    with pytest.raises(OptionError) as caught:
        ours(PROMPT, streamer=streamer)
    assert caught.value.option == "streamer"


def test_a_streamer_may_be_bound_to_the_decoding_method():
    heard = Heard()
    method = functools.partial(unspool.decoding_method, streamer=heard)
    sequences = MODEL.generate(PROMPT, custom_generate=method, num_beams=2, max_new_tokens=6)
    assert torch.stack(heard.values[1:], 1).equal(sequences[:, PROMPT.shape[1] :]) and heard.ends == 1


def test_columns_wait_for_the_slowest_output():
    """Two outputs: 1 2 3 and 4 5, pad 9."""
    heard = Heard()
    columns = Columns(heard, 2, 9)
    columns.put(0, [1, 2], ended=False)
    assert not heard.values
    columns.put(1, [4], ended=False)
    columns.put(1, [5], ended=True)
    columns.put(0, [3], ended=True)
    assert [value.tolist() for value in heard.values] == [[1, 4], [2, 5], [3, 9]]
