"""Token ids of a stored config that the vocabulary lacks are dropped; those of a caller are not."""

from __future__ import annotations

from typing import Any

import pytest

from unspool.config import OPTIONS, GenerationConfig, resolve
from unspool.config.vocabulary import without_unknown_ids
from unspool.errors import OptionError

C = GenerationConfig

STORED: dict[str, tuple[Any, Any]] = {
    "eos_token_id": ([2, -1, 10], (2,)),
    "suppress_tokens": ([-1, 3, 10], (3,)),
    "begin_suppress_tokens": ([10], None),
    "forced_bos_token_id": (10, None),
    "forced_eos_token_id": ([2, 50], (2,)),
    "bad_words_ids": ([[1, 10], [4], [-1]], ((4,),)),
    "sequence_bias": ([[[1, 2], 0.5], [[10], 3.0]], {(1, 2): 0.5}),
    "pad_token_id": (-1, None),
    "penalty_exclude": ([9, 10], (9,)),
}


@pytest.mark.parametrize("drop_in", [False, True])
def test_ids_outside_the_vocabulary_are_dropped(drop_in: bool) -> None:
    stored = C.from_stored({**{name: value for name, (value, _) in STORED.items()}, "repetition_penalty": 1.5})
    known = without_unknown_ids(resolve({}, None, stored, drop_in=drop_in), 10)
    for name, (_, expected) in STORED.items():
        if OPTIONS[name].door == "both" or not drop_in:
            assert getattr(known, name) == expected, name
    assert not known.ignore_eos


def test_alternatives_of_forced_words_go_one_by_one() -> None:
    words = [[1, None, 2], [3, 10], [[4], [11]], [[12], [13, 1]]]
    resolved = resolve({"num_beams": 2}, None, C.from_stored({"force_words_ids": words}))
    assert without_unknown_ids(resolved, 10).force_words_ids == ((1, None, 2), ((4,),))


def test_without_an_end_left_nothing_ends_an_output() -> None:
    stored = C.from_stored({"eos_token_id": -1, "exponential_decay_length_penalty": (2, 1.5)})
    known = without_unknown_ids(resolve({}, None, stored), 10)
    assert (known.eos_token_id, known.ignore_eos, known.exponential_decay_length_penalty) == (None, True, None)


def test_ids_of_the_caller_stay() -> None:
    resolved = resolve({"suppress_tokens": [10]}, C(eos_token_id=50), C.from_stored({"bad_words_ids": [[60]]}))
    known = without_unknown_ids(resolved, 10)
    assert (known.suppress_tokens, known.eos_token_id, known.bad_words_ids) == ((10,), (50,), None)


def test_a_negative_id_of_the_caller_is_an_error_unless_the_model_stores_it_too() -> None:
    with pytest.raises(OptionError, match="`eos_token_id` must be a token id"):
        resolve({}, C.from_stored({"eos_token_id": -1}), C(eos_token_id=2))
    stored = C.from_stored({"eos_token_id": -1})
    assert resolve({}, stored, stored).eos_token_id == (-1,)
    assert resolve({"eos_token_id": 3}, None, stored).eos_token_id == (3,)


def test_a_stored_value_that_holds_no_ids_still_raises() -> None:
    with pytest.raises(OptionError, match="stored in the model's generation_config"):
        resolve({}, None, C.from_stored({"suppress_tokens": "all"}))


def test_negative_ids_stay_in_the_file(tmp_path: Any) -> None:
    C.from_stored({"eos_token_id": [2, -1]}).save_pretrained(tmp_path)
    assert C.from_pretrained(tmp_path).extras == {"eos_token_id": [2, -1]}
