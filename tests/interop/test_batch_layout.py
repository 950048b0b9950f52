"""Which row of transformers' batch a row of ours stands for, in plain numbers."""

from __future__ import annotations

import torch

from unspool.interop.batch_layout import BatchLayout, TokenPath
from unspool.protocols import RowKey

IDS = torch.tensor([[0, 11], [12, 13]])


def key(output: int = 0) -> RowKey:
    return RowKey(0, 0, output, 0)


def layout_of(rows_per_prompt: int, *, ranked: bool) -> tuple[BatchLayout, TokenPath, TokenPath]:
    layout = BatchLayout(IDS, pad_token_id=9, rows_per_prompt=rows_per_prompt, ranked=ranked)
    return layout, layout.begin(), layout.begin()


def placed(layout: BatchLayout, rows: list[tuple[TokenPath, int]]) -> list[tuple[TokenPath, int]]:
    layout.arrange_rows([path for path, _ in rows], [key(output) for _, output in rows])
    return [(path, layout.batch_row_of(path, output)) for path, output in rows]


def test_the_same_tokens_are_the_same_path():
    root = TokenPath(0)
    path = root.follow(5).follow(6)
    assert root.follow(5).follow(6) is path and path.tokens == [5, 6] and path.at(1) is root.follow(5)
    assert root.tokens == [] and root.follow(6) is not path


def test_beams_begin_as_equal_rows_and_then_stand_by_rank():
    layout, first, second = layout_of(2, ranked=True)
    (call,) = layout.calls(placed(layout, [(first, 0), (second, 0)]))
    assert call.shown == [0, 0, 1, 1] and call.engine_rows == {0: 0, 2: 1} and call.outputs == [[], [], [], []]
    rows = [(first.follow(5), 0), (first.follow(4), 0), (second.follow(7), 0), (second.follow(8), 0)]
    (call,) = layout.calls(placed(layout, rows))
    assert call.outputs == [[5], [4], [7], [8]] and call.engine_rows == {0: 0, 1: 1, 2: 2, 3: 3}
    assert layout.ids(call.outputs, IDS.device).tolist() == [[0, 11, 5], [0, 11, 4], [12, 13, 7], [12, 13, 8]]


def test_a_second_look_finds_a_beam_in_its_place():
    layout, first, _ = layout_of(2, ranked=True)
    placed(layout, [(first.follow(5), 0), (first.follow(4), 0)])
    assert placed(layout, [(first.follow(4), 0)]) == [(first.follow(4), 1)]


def test_outputs_stand_by_their_index_and_rest_as_pads_when_they_have_ended():
    layout, first, second = layout_of(2, ranked=False)
    placed(layout, [(first, 0), (first, 1), (second, 0), (second, 1)])
    layout.end(0, first.follow(5))
    rows = [(first.follow(6).follow(7), 1), (second.follow(8).follow(8), 0), (second.follow(8).follow(7), 1)]
    (call,) = layout.calls(placed(layout, rows))
    assert call.outputs == [[5, 9], [6, 7], [8, 8], [8, 7]] and call.shown == [None, 0, 1, 2]
    assert call.engine_rows == {1: 0, 2: 1, 3: 2}


def test_a_prompt_whose_search_is_over_rests_where_it_stood():
    layout, first, second = layout_of(2, ranked=True)
    placed(layout, [(first.follow(5), 0), (first.follow(4), 0), (second.follow(7), 0), (second.follow(8), 0)])
    (call,) = layout.calls(placed(layout, [(second.follow(8).follow(3), 0), (second.follow(7).follow(3), 0)]))
    assert call.outputs == [[5, 9], [4, 9], [8, 3], [7, 3]] and call.shown == [None, None, 0, 1]


def test_rows_that_share_a_place_or_differ_in_length_come_in_calls_of_their_own():
    layout, first, second = layout_of(1, ranked=False)
    five, six = first.follow(5), first.follow(6)
    calls = layout.calls(placed(layout, [(five, 0), (six, 0), (second, 0), (five.follow(1), 0)]))
    assert [(call.outputs, call.engine_rows) for call in calls] == [
        ([[], []], {1: 2}),
        ([[5], [9]], {0: 0}),
        ([[6], [9]], {0: 1}),
        ([[5, 1], [9, 9]], {0: 3}),
    ]
