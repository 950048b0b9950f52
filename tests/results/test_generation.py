"""What a call hands back prints its text, turns into JSON, and holds what the engine said."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from rich.console import Console

from tests.speakers import recite
from tests.text.tokenizers import byte_level
from tests.toys import mixing_toy
from unspool import LanguageModel
from unspool.results import Chunk, Completion, Generation, Timing, TopLogprob, Usage
from unspool.text.detokenize import Detokenizer
from unspool.types import Output


class Config:
    def to_dict(self) -> dict[str, Any]:
        return {"temperature": 0.8}


def completion(text: str = " there was a king", *, index: int = 0, **changes: Any) -> Completion:
    fields: dict[str, Any] = {
        "index": index,
        "text": text,
        "token_ids": (5, 6),
        "tokens": (" there was", " a king"),
        "logprobs": (-0.5, -1.0),
        "scores": (-0.25, -math.inf),
        "score": -1.5,
        "finish_reason": "eos",
    }
    return Completion(**fields | changes)


def generation(*completions: Completion, **changes: Any) -> Generation:
    fields: dict[str, Any] = {
        "prompt": "Once",
        "prompt_token_ids": (1, 2),
        "completions": completions or (completion(),),
        "seed": 7,
        "usage": Usage(prompt_tokens=2, completion_tokens=2),
        "timing": Timing.of(0.5, tokens=2, seconds_to_first_token=0.125),
        "config": Config(),
        "strategy": "sample",
    }
    return Generation(**fields | changes)


def test_printing_a_generation_prints_its_first_text() -> None:
    result = generation(completion(), completion(" was it", index=1))
    assert str(result) == result.text == " there was a king"
    assert result.texts == (" there was a king", " was it")


def test_echo_puts_the_prompt_in_front() -> None:
    result = generation(completion(), completion(" was it", index=1), echo=True)
    assert str(result) == "Once there was a king"
    assert result.texts == ("Once there was a king", "Once was it")
    assert result.completions[0].text == " there was a king"
    assert generation(prompt=None, echo=True).text == " there was a king"


def test_a_generation_is_json_and_names_everything() -> None:
    top = ((TopLogprob(5, " there", -0.5), TopLogprob(8, " is", -math.inf)), ())
    data = json.loads(json.dumps(generation(completion(top_logprobs=top)).to_dict(), allow_nan=False))

    assert data["usage"] == {
        "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4, "cached_tokens": 0, "forward_passes": 0,
    }  # fmt: skip
    assert data["timing"] == {"seconds": 0.5, "seconds_to_first_token": 0.125, "tokens_per_second": 4.0}
    assert (data["prompt"], data["seed"], data["strategy"]) == ("Once", 7, "sample")
    assert data["config"] == {"temperature": 0.8}
    (only,) = data["completions"]
    assert only["scores"] == [-0.25, None]
    assert only["top_logprobs"][0][1] == {"token_id": 8, "text": " is", "logprob": None}
    assert only.keys() == {field.name for field in dataclasses.fields(Completion)} | {
        "satisfied",
        "logprob",
        "mean_logprob",
    }
    assert (only["logprob"], only["mean_logprob"]) == (-1.5, -0.75)


def test_results_cannot_be_changed() -> None:
    values = (generation(), completion(), Chunk(text="a"), Usage(prompt_tokens=1, completion_tokens=1))
    for value, name in zip(values, ("seed", "text", "text", "prompt_tokens"), strict=True):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_a_completion_is_made_of_an_output_of_the_engine() -> None:
    tokenizer = byte_level()
    prompt, ids = tokenizer.encode("Once"), tokenizer.encode(" a 💡.\n\nUser: x")
    logprobs = tuple(-0.5 for _ in ids)
    best = tuple(((token, -0.5), (tokenizer.eos_token_id, -2.0)) for token in ids)
    output = Output(
        token_ids=tuple(ids), logprobs=logprobs, scores=logprobs, score=-3.0, finish_reason="stop", top_logprobs=best
    )
    made = Completion.from_output(
        output, index=2, prompt_ids=prompt, detokenizer=Detokenizer(tokenizer), stops=("\n\nUser:",)
    )

    assert (made.index, made.text, made.finish_reason) == (2, " a 💡.", "stop")
    assert "".join(made.tokens) == " a 💡.\n\nUser: x"
    assert len(made.tokens) == len(made.token_ids) == len(ids)
    assert made.top_logprobs is not None
    assert made.top_logprobs[0] == (TopLogprob(ids[0], " a", -0.5), TopLogprob(0, "<|end|>", -2.0))


def test_without_a_tokenizer_there_is_no_text_but_all_else() -> None:
    best = (((3, -0.5),),)
    output = Output(
        token_ids=(3,), logprobs=(-0.5,), scores=(1.0,), score=0.0, finish_reason="length", top_logprobs=best
    )
    made = Completion.from_output(output, index=0, prompt_ids=(1,), detokenizer=None)

    assert (made.text, made.tokens, made.token_ids) == ("", (), (3,))
    assert made.top_logprobs == ((TopLogprob(3, "<id 3>", -0.5),),)


def test_top_logprobs_stay_absent_where_nobody_asked() -> None:
    output = Output(token_ids=(), logprobs=(), scores=(), score=0.0, finish_reason="length")
    assert Completion.from_output(output, index=0, prompt_ids=(), detokenizer=None).top_logprobs is None


@pytest.mark.parametrize(("seconds", "rate"), [(2.0, 5.0), (0.0, 0.0)])
def test_the_rate_counts_tokens_over_the_whole_time(seconds: float, rate: float) -> None:
    assert Timing.of(seconds, tokens=10).tokens_per_second == rate


def test_a_chunk_prints_its_text_and_is_json() -> None:
    chunk = Chunk(text=" king", token_ids=(4,), logprobs=(-math.inf,), finish_reason="eos", is_last=True)
    assert f"{chunk}" == " king"
    data = json.loads(json.dumps(chunk.to_dict(), allow_nan=False))
    assert data.keys() == {field.name for field in dataclasses.fields(Chunk)}
    assert data["logprobs"] == [None]


def test_rich_shows_every_output_with_its_facts() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(generation(completion(), completion(" was it", index=1, finish_reason="length")))
    text = console.export_text()
    console.file.close()
    assert "Once there was a king" in text
    assert "Once was it" in text
    assert "length · 2 tokens · score -1.500 · sample · seed 7" in text


def test_a_repr_is_one_short_line_and_str_stays_the_text() -> None:
    text = "one 🦊 said: two"
    lm = recite(text)
    results: list[Any] = [
        (generation := lm.generate("a\n", logprobs=3)),
        generation.completions[0],
        lm.score("a\n", text),
        lm.next_tokens("a\n"),
        lm.compare("a\n", ["greedy", "sample"], max_new_tokens=3),
    ]
    for result in results:
        assert "\n" not in repr(result) and len(repr(result)) < 160
        assert type(result).__name__ in repr(result)
    assert repr(text) in repr(generation)
    assert f"{generation.usage.completion_tokens} tokens" in repr(generation)
    assert str(generation) == generation.text == text
    assert len(repr(completion("long " * 500))) < 160 and "\n" not in repr(completion("a\nb"))
    without_tokenizer = LanguageModel(mixing_toy()).generate([1], max_new_tokens=12)
    assert str(list(without_tokenizer.completions[0].token_ids[:8]))[:-1] in repr(without_tokenizer)


def test_json_text_is_one_line_unless_an_indent_is_given() -> None:
    lm = recite("one two")
    results: list[Any] = [
        (generation := lm.generate("a\n", logprobs=1)),
        generation.completions[0],
        lm.score("a\n", "one"),
        lm.next_tokens("a\n"),
        next(iter(lm.stream("a\n"))),
    ]
    for result in results:
        assert json.loads(result.to_json()) == json.loads(json.dumps(result.to_dict()))
        assert "\n" not in result.to_json() and "\n  " in result.to_json(indent=2)
