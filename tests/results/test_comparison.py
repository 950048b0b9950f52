"""A comparison is a mapping in the order given, and prints itself everywhere."""

from __future__ import annotations

import json
import math

import pytest

from unspool.config import GenerationConfig
from unspool.results import Completion, Generation, Timing, Usage
from unspool.results.comparison import Compared, Comparison
from unspool.results.figures import Figures


def generation(text: str, *, strategy: str = "greedy", seed: int = 7, prompt: str | None = "Once") -> Generation:
    words = text.split()
    output = Completion(
        index=0,
        text=text,
        token_ids=tuple(sorted(set(words)).index(word) for word in words),
        tokens=tuple(words),
        logprobs=(math.log(0.5),) * len(words),
        scores=(-1.0,) * len(words),
        score=-1.0,
        finish_reason="eos",
    )
    return Generation(
        prompt=prompt,
        prompt_token_ids=(1,),
        completions=(output,),
        seed=seed,
        usage=Usage(prompt_tokens=1, completion_tokens=len(words), forward_passes=len(words)),
        timing=Timing.of(0.5, tokens=len(words)),
        config=GenerationConfig(temperature=0.5),
        strategy=strategy,
    )


def comparison() -> Comparison:
    return Comparison(
        rows=(
            Compared.of("wide", generation(" a b a b"), unread=("temperature", "top_p")),
            Compared.of("drawn", generation(" c", strategy="sample"), unread=()),
            Compared.of("best", generation(" d e f"), unread=("top_p",)),
        )
    )


def test_it_is_a_mapping_in_the_order_given() -> None:
    result = comparison()
    assert list(result) == ["wide", "drawn", "best"]
    assert len(result) == 3
    assert result["drawn"].text == " c"
    assert "drawn" in result and "other" not in result
    assert [answer.text for answer in result.values()] == [" a b a b", " c", " d e f"]
    assert result.get("other") is None
    with pytest.raises(KeyError, match="other"):
        result["other"]


def test_figures_are_those_of_the_first_output() -> None:
    result = comparison()
    assert list(result.figures) == list(result)
    assert result.figures["wide"] == Figures.of(result["wide"].completions[0])
    assert result.figures["wide"].rep_2 == pytest.approx(1 / 3)  # ab ba ab
    assert result.rows[0].figures.perplexity == pytest.approx(2.0)


def test_unread_options_are_told_by_option() -> None:
    assert comparison().unread == {"temperature": ("wide",), "top_p": ("wide", "best")}


def test_repr_is_short() -> None:
    assert repr(comparison()) == "Comparison('wide', 'drawn', 'best')"


def test_json_holds_everything_but_times() -> None:
    result = comparison()
    plain = json.loads(result.to_json())
    assert plain == result.to_dict()
    assert plain["prompt"] == "Once"
    first = plain["rows"][0]
    assert (first["name"], first["text"], first["unread"]) == ("wide", " a b a b", ["temperature", "top_p"])
    assert first["figures"] == result.figures["wide"].to_dict()
    assert first["generation"]["config"] == {"temperature": 0.5}
    assert "timing" not in first["generation"]


def test_it_is_a_value() -> None:
    with pytest.raises(AttributeError):
        comparison().rows = ()  # type: ignore[misc]
    assert comparison() == comparison()
