"""to_records: one flat record per completion, as a table reads them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.speakers import recite
from tests.toys import mixing_toy
from unspool import LanguageModel, to_records

PROMPTS = [[1, 2], [3]]


def test_there_is_one_record_per_completion_in_order() -> None:
    lm = LanguageModel(mixing_toy())
    found = lm.generate(PROMPTS, num_beams=3, num_return_sequences=2, max_new_tokens=[4, 5], seed=7)
    records = to_records(found)
    assert [(each["prompt_index"], each["index"]) for each in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for record in records:
        generation = found[record["prompt_index"]]
        completion = generation.completions[record["index"]]
        assert record["strategy"] == "beam" and record["seed"] == 7
        assert record["num_tokens"] == len(completion.token_ids)
        assert record["num_prompt_tokens"] == len(PROMPTS[record["prompt_index"]])
        assert record["finish_reason"] == completion.finish_reason
        assert record["score"] == completion.score
        assert record["logprob"] == pytest.approx(math.fsum(completion.logprobs))
        assert record["mean_logprob"] == pytest.approx(math.fsum(completion.logprobs) / len(completion.token_ids))


def test_records_are_flat_and_plain_and_have_the_same_keys() -> None:
    found = recite("one two").generate(["a\n", "b\n"], echo=[False, True])
    records = to_records(found)
    assert [each["text"] for each in records] == ["one two", "b\none two"]
    assert records[0].keys() == records[1].keys()
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert all(isinstance(value, str | int | float | None) for record in records for value in record.values())


def test_one_result_a_stream_and_comparisons_have_records_too() -> None:
    lm = LanguageModel(mixing_toy())
    one = lm.generate([1], max_new_tokens=2)
    assert to_records(one) == to_records([one])
    stream = lm.stream(PROMPTS, max_new_tokens=2)
    assert to_records(stream.generations) == []
    list(stream)
    assert len(to_records(stream.generations)) == 2
    compared = to_records(lm.compare(PROMPTS, ["greedy", "sample"], max_new_tokens=2))
    assert [(each["prompt_index"], each["entry"]) for each in compared] == [
        (0, "greedy"), (0, "sample"), (1, "greedy"), (1, "sample")
    ]  # fmt: skip


def test_what_is_no_result_is_refused() -> None:
    wrong: Any = ["a text"]
    with pytest.raises(TypeError, match="got str"):
        to_records(wrong)
