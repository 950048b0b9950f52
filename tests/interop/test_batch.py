"""What counts as a left-padded batch, and how outputs become one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unspool.errors import OptionError, PromptError
from unspool.interop.batch import batch_of_bos, read_batch

IDS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 4]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
PROMPTS = ((5, 6), (7, 8, 9, 4))


@pytest.mark.parametrize(
    ("arguments", "prompts"),
    [
        ({"attention_mask": MASK}, PROMPTS),
        ({"attention_mask": MASK.bool()}, PROMPTS),
        ({"attention_mask": MASK.float(), "pad_token_id": 7}, PROMPTS),
        ({"attention_mask": torch.ones_like(MASK), "pad_token_id": 0}, ((0, 0, 5, 6), PROMPTS[1])),
        ({"attention_mask": MASK, "position_ids": torch.tensor([[3, 3, 0, 1], [0, 1, 2, 3]])}, PROMPTS),
        ({"pad_token_id": 0}, PROMPTS),
        ({"pad_token_id": 0, "eos_token_ids": (9,)}, PROMPTS),
        ({"pad_token_id": 0, "eos_token_ids": (9, 0)}, ((0, 0, 5, 6), PROMPTS[1])),
        ({"pad_token_id": 3}, ((0, 0, 5, 6), PROMPTS[1])),
        ({}, ((0, 0, 5, 6), PROMPTS[1])),
    ],
    ids=[
        "mask",
        "bool",
        "float",
        "mask-over-pad",
        "positions",
        "inferred",
        "other-eos",
        "pad-is-eos",
        "no-pads",
        "bare",
    ],
)
def test_pads_on_the_left_are_taken_off(arguments: dict[str, Any], prompts: Any):
    batch = read_batch(IDS, **arguments)
    assert batch.prompts == prompts
    assert batch.input_ids.equal(IDS) and batch.width == 4


@pytest.mark.parametrize(
    ("ids", "arguments", "words"),
    [
        ([[1, 2]], {}, "must be a tensor"),
        (torch.tensor([1, 2]), {}, "add the batch dimension: input_ids[None]"),
        (torch.tensor([[[1]]]), {}, "two dimensions"),
        (torch.tensor([[1.0]]), {}, "must hold integers"),
        (torch.tensor([[True]]), {}, "must hold integers"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "holds no token"),
        (torch.zeros(0, 3, dtype=torch.int64), {}, "holds no token"),
        (IDS, {"attention_mask": MASK[:, 1:]}, "the shape of `input_ids`"),
        (IDS, {"attention_mask": MASK[0]}, "add the batch dimension: attention_mask[None]"),
        (IDS, {"attention_mask": MASK.tolist()}, "must be a tensor"),
        (IDS, {"attention_mask": MASK * 2}, "hold only 0 for pads and 1 for tokens"),
        (
            IDS,
            {"attention_mask": MASK.flip(1)},
            "row 0 of the batch is padded on the right; set tokenizer.padding_side",
        ),
        (IDS, {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])}, "row 1 of the batch has pads between"),
        (IDS, {"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "row 1 of the batch holds only pads"),
        (IDS, {"pad_token_id": 8}, "pads between its tokens (from pad_token_id=8: give `attention_mask`"),
        (IDS, {"pad_token_id": 6}, "padded on the right (from pad_token_id=6"),
        (IDS, {"attention_mask": MASK, "position_ids": torch.arange(4)}, "add the batch dimension"),
        (IDS, {"attention_mask": MASK, "position_ids": torch.arange(4)[None]}, "must count a row's real tokens from 0"),
        (IDS, {"position_ids": torch.arange(3)[None]}, "must count a row's real tokens from 0"),
    ],
)
def test_anything_else_is_refused_and_said(ids: Any, arguments: dict[str, Any], words: str):
    with pytest.raises(PromptError) as caught:
        read_batch(ids, **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "prompts"),
    [
        (MASK.flip(1), ((0, 0), PROMPTS[1])),
        (torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]]), ((0, 5), PROMPTS[1])),
        (torch.tensor([[0, 1, 0, 1], [1, 1, 0, 1]]), ((0, 6), (7, 8, 4))),
    ],
    ids=["right", "both", "holes"],
)
def test_the_tokens_under_the_mask_are_the_prompt(mask: torch.Tensor, prompts: Any):
    ignored: list[OptionError] = []
    batch = read_batch(IDS, mask, ignored=ignored)
    assert batch.prompts == prompts and batch.input_ids.equal(IDS) and batch.attention_mask.equal(mask.bool())
    assert [error.option for error in ignored] == ["attention_mask"]
    assert read_batch(IDS, MASK, ignored=[]).prompts == PROMPTS


def test_a_row_of_pads_is_read_as_tokens_with_an_error_for_the_warning():
    ignored: list[OptionError] = []
    batch = read_batch(IDS, torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), ignored=ignored)
    assert batch.prompts == (tuple(IDS[0].tolist()), PROMPTS[1])
    assert "no token in row 0" in str(ignored[0])


def test_one_row_of_positions_may_stand_for_all_rows():
    positions = torch.arange(4)[None]
    assert read_batch(IDS, position_ids=positions).prompts == ((0, 0, 5, 6), PROMPTS[1])


def test_outputs_stand_behind_their_prompts_as_these_were_given():
    batch = read_batch(IDS.int(), MASK)
    found = batch.sequences([[1], [1, 2], [3, 3, 3], []], 11)
    assert found.dtype == torch.int64
    assert found.tolist() == [
        [0, 0, 5, 6, 1, 11, 11],
        [0, 0, 5, 6, 1, 2, 11],
        [7, 8, 9, 4, 3, 3, 3],
        [7, 8, 9, 4, 11, 11, 11],
    ]


def test_a_pad_is_needed_only_where_outputs_differ_in_length():
    batch = read_batch(IDS, MASK)
    assert batch.sequences([[1], [2]], None).tolist() == [[0, 0, 5, 6, 1], [7, 8, 9, 4, 2]]
    with pytest.raises(OptionError) as caught:
        batch.sequences([[1], [2, 2]], None)
    assert caught.value.option == "pad_token_id"


def test_no_prompt_at_all_is_a_begin_of_sequence_token():
    batch = batch_of_bos(3, torch.device("cpu"))
    assert batch.prompts == ((3,),) and batch.input_ids.tolist() == [[3]]
    with pytest.raises(PromptError, match="bos_token_id"):
        batch_of_bos(None, torch.device("cpu"))
