"""The next-token distribution, read from what the engine traced."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from unspool.errors import OptionError
from unspool.results import NextTokens
from unspool.types import Distribution

NAMES = [" king", " cat", "\n", "a", "b", "c"]


class Words:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(NAMES[i] for i in ids)


def distribution() -> Distribution:
    """Probabilities 0.4, 0.3, 0.2, 0.05, 0.05, 0; " cat" is banned, then the two at the end are cut by top_p."""
    logprobs = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05, 0.0]).log()
    scores = logprobs.clone()
    scores[[1, 3, 4]] = -math.inf
    return Distribution(
        logprobs, scores, torch.tensor([-1, 0, -1, 2, 2, -1]), ("bad_words_ids", "temperature", "top_p")
    )


def read(**options: Any) -> NextTokens:
    return NextTokens.from_distribution(distribution(), Words(), **options)


def test_what_is_drawn_comes_first_then_what_was_cut() -> None:
    rows = [(e.text, e.rank, round(e.probability, 4), round(e.processed_probability, 4), e.cut_by) for e in read()]
    assert rows == [
        (" king", 1, 0.4, 0.6667, None),  # 0.4 / (0.4 + 0.2)
        ("\n", 3, 0.2, 0.3333, None),
        (" cat", 2, 0.3, 0.0, "bad_words_ids"),
        ("a", 4, 0.05, 0.0, "top_p"),
        ("b", 5, 0.05, 0.0, "top_p"),  # as likely as "a": the lower id ranks first
        ("c", 6, 0.0, 0.0, None),
    ]
    assert [entry.kept for entry in read()] == [True, True, False, False, False, False]


def test_whole_tensors_are_there_for_exact_work() -> None:
    result = read(limit=1)
    assert result.probabilities.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.05, 0.05, 0.0])
    assert result.processed_probabilities.tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0, 0, 0])
    assert (result.vocab_size, result.num_kept) == (6, 2)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_processors_both_probabilities_are_the_exact_ones(family: str, options: dict[str, Any]) -> None:
    """In float64 from the model's logits, by transformers' forward: no rounding shows in the display or in JSON."""
    model = tiny_model(family)
    lm = unspool.load(model)
    result = lm.next_tokens([5, 6, 7], limit=96, **options)
    with torch.inference_mode():
        exact = model(torch.tensor([[5, 6, 7]])).logits[0, -1].double().softmax(-1)
    for found in (result.probabilities, result.processed_probabilities):
        assert found.dtype == torch.float64 and torch.allclose(found, exact, rtol=1e-4, atol=0)
    assert torch.allclose(result.probabilities, result.processed_probabilities, rtol=1e-14, atol=0)
    assert result.probabilities.sum().item() == pytest.approx(1, abs=1e-14)
    for entry in json.loads(json.dumps(result.to_dict()))["tokens"]:
        assert entry["processed_probability"] == pytest.approx(entry["probability"], rel=1e-14)


def test_the_limit_takes_the_greatest_before_or_after_processing() -> None:
    assert [entry.text for entry in read(limit=2)] == [" king", "\n"]
    assert [entry.text for entry in read(limit=3)] == [" king", "\n", " cat"]
    assert len(read(limit=100)) == 6
    assert read(limit=1).hidden_probability == pytest.approx(1 / 3)


def test_a_token_forced_from_far_behind_is_shown() -> None:
    base = distribution()
    scores = torch.full((6,), -math.inf)
    scores[4] = 0.0
    forced = Distribution(base.logprobs, scores, torch.tensor([0, 0, 0, 0, -1, 0]), ("forced_eos_token_id",))
    first = NextTokens.from_distribution(forced, Words(), limit=2)[0]
    assert (first.text, first.rank, first.processed_probability) == ("b", 5, 1.0)


def test_a_distribution_is_a_sequence_of_what_it_shows() -> None:
    result = read(limit=4)
    assert len(result) == 4
    assert result[0].text == " king"
    assert [entry.text for entry in result[1:3]] == ["\n", " cat"]
    assert [entry.text for entry in result][-1] == result[-1].text


@pytest.mark.parametrize(("limit", "accepted"), [(1, True), (20, True), (0, False), (-1, False)])
def test_at_least_one_token_is_shown(limit: int, accepted: bool) -> None:
    if accepted:
        assert len(read(limit=limit)) == min(limit, 6)
    else:
        with pytest.raises(OptionError, match=f"`limit` must be at least 1, got {limit}"):
            read(limit=limit)


def test_it_is_json() -> None:
    data = json.loads(json.dumps(read(limit=3, prompt="The").to_dict(), allow_nan=False))
    assert data["prompt"] == "The"
    assert data["processors"] == ["bad_words_ids", "temperature", "top_p"]
    assert data["tokens"][2]["cut_by"] == "bad_words_ids"


def test_importing_results_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, unspool.results, unspool.results.render;"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
