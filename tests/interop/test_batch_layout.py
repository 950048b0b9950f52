"""Which row of transformers' batch a row of ours stands for, in plain numbers."""

from __future__ import annotations

import torch

from unspool.interop.batch_layout import Board, Path
from unspool.protocols import RowKey

IDS = torch.tensor([[0, 11], [12, 13]])


def key(output: int = 0) -> RowKey:
    return RowKey(0, 0, output, 0)


def board_of(seats: int, *, ranked: bool) -> tuple[Board, Path, Path]:
    board = Board(IDS, pad_token_id=9, seats=seats, ranked=ranked)
    return board, board.begin(), board.begin()


def placed(board: Board, rows: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    board.seat([path for path, _ in rows], [key(output) for _, output in rows])
    return [(path, board.place_of(path, output)) for path, output in rows]


def test_the_same_tokens_are_the_same_path():
    root = Path(0)
    path = root.follow(5).follow(6)
    assert root.follow(5).follow(6) is path and path.tokens == [5, 6] and path.at(1) is root.follow(5)
    assert root.tokens == [] and root.follow(6) is not path


def test_beams_begin_as_equal_rows_and_then_stand_by_rank():
    board, first, second = board_of(2, ranked=True)
    (call,) = board.calls(placed(board, [(first, 0), (second, 0)]))
    assert call.shown == [0, 0, 1, 1] and call.ours == {0: 0, 2: 1} and call.outputs == [[], [], [], []]
    rows = [(first.follow(5), 0), (first.follow(4), 0), (second.follow(7), 0), (second.follow(8), 0)]
    (call,) = board.calls(placed(board, rows))
    assert call.outputs == [[5], [4], [7], [8]] and call.ours == {0: 0, 1: 1, 2: 2, 3: 3}
    assert board.ids(call.outputs, IDS.device).tolist() == [[0, 11, 5], [0, 11, 4], [12, 13, 7], [12, 13, 8]]


def test_a_second_look_finds_a_beam_in_its_place():
    board, first, _ = board_of(2, ranked=True)
    placed(board, [(first.follow(5), 0), (first.follow(4), 0)])
    assert placed(board, [(first.follow(4), 0)]) == [(first.follow(4), 1)]


def test_outputs_stand_by_their_index_and_rest_as_pads_when_they_have_ended():
    board, first, second = board_of(2, ranked=False)
    placed(board, [(first, 0), (first, 1), (second, 0), (second, 1)])
    board.end(0, first.follow(5))
    rows = [(first.follow(6).follow(7), 1), (second.follow(8).follow(8), 0), (second.follow(8).follow(7), 1)]
    (call,) = board.calls(placed(board, rows))
    assert call.outputs == [[5, 9], [6, 7], [8, 8], [8, 7]] and call.shown == [None, 0, 1, 2]
    assert call.ours == {1: 0, 2: 1, 3: 2}


def test_a_prompt_whose_search_is_over_rests_where_it_stood():
    board, first, second = board_of(2, ranked=True)
    placed(board, [(first.follow(5), 0), (first.follow(4), 0), (second.follow(7), 0), (second.follow(8), 0)])
    (call,) = board.calls(placed(board, [(second.follow(8).follow(3), 0), (second.follow(7).follow(3), 0)]))
    assert call.outputs == [[5, 9], [4, 9], [8, 3], [7, 3]] and call.shown == [None, None, 0, 1]


def test_rows_that_share_a_place_or_differ_in_length_come_in_calls_of_their_own():
    board, first, second = board_of(1, ranked=False)
    five, six = first.follow(5), first.follow(6)
    calls = board.calls(placed(board, [(five, 0), (six, 0), (second, 0), (five.follow(1), 0)]))
    assert [(call.outputs, call.ours) for call in calls] == [
        ([[], []], {1: 2}),
        ([[5], [9]], {0: 0}),
        ([[6], [9]], {0: 1}),
        ([[5, 1], [9, 9]], {0: 3}),
    ]
