"""Values that transformers accepts in other forms are converted without loss, and everything else stays an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import unspool
from tests.config.test_generation import NUMBERS
from tests.interop.test_ignored import IDS, MODEL, SPEAKER, caught
from unspool.config import OPTIONS
from unspool.errors import OptionError
from unspool.interop.lenient import lenient


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": 0, "max_new_tokens": 6},
        {"max_new_tokens": 6.0},
        {"max_new_tokens": torch.tensor(6), "repetition_penalty": 1.5},
        {"max_new_tokens": np.int64(6), "eos_token_id": torch.tensor([2, 33])},
        {"max_new_tokens": 6, "suppress_tokens": np.array([94, 33]), "use_cache": 1},
        {"max_new_tokens": 6, "labels": None, "pixel_values_videos": None, "foo": None},
    ],
    ids=str,
)
def test_a_call_that_transformers_accepts_gives_its_tokens_unless_it_is_strict(options: dict[str, Any]) -> None:
    expected, _ = caught(MODEL.generate, IDS, **options)
    assert unspool.generate(MODEL, IDS, **options).equal(expected)
    with pytest.raises(OptionError):
        unspool.generate(MODEL, IDS, strict=True, **options)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, row in NUMBERS.items() for value in row[0]], ids=str
)
def test_a_value_that_its_option_accepts_is_not_converted(name: str, value: Any) -> None:
    assert lenient({name: value})[name] is value
    tensor = lenient({name: np.asarray(value)})[name]
    assert OPTIONS[name].check(tensor) == pytest.approx(OPTIONS[name].check(value), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 2.5},
        {"max_new_tokens": torch.tensor(2.5)},
        {"max_new_tokens": True},
        {"do_sample": 2},
        {"top_k": float("nan")},
        {"num_beams": torch.tensor([2])},
        {"foo": 1},
    ],
    ids=str,
)
def test_a_value_that_would_change_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError) as error:
        unspool.generate(MODEL, IDS, **options)
    assert error.value.option == name


def test_a_pipeline_converts_too() -> None:
    pipe = unspool.pipeline("text-generation", SPEAKER)
    expected = pipe("one", do_sample=False, max_new_tokens=4)
    assert pipe("one", do_sample=0, max_new_tokens=4.0, foo=None) == expected
    with pytest.raises(OptionError, match="do_sample"):
        pipe("one", do_sample=0, max_new_tokens=4, strict=True)
