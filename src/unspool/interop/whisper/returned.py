"""The result of a transcription in transformers' form: a tensor, a dict with segments, or an output class.

Owns: padding and the dicts of segments. Does not know: decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.nn.utils.rnn import pad_sequence

from unspool.interop.decode import Returned
from unspool.interop.record import steps_of
from unspool.interop.whisper.states import stacked_states
from unspool.transcription.segments import Segment

Rows: TypeAlias = "Sequence[Sequence[Segment]]"
"""The segments of each row."""


def padded(rows: Sequence[Sequence[int]], pad_token_id: int | None, device: torch.device) -> torch.Tensor:
    """Return rows of token ids, padded on the right. --> [rows, longest] int64"""
    longest = max(map(len, rows))
    fill = [pad_token_id or 0]
    return torch.tensor([[*row, *fill * (longest - len(row))] for row in rows], dtype=torch.int64, device=device).view(
        len(rows), longest
    )


def transcripts(rows: Rows, pad_token_id: int | None, device: torch.device) -> torch.Tensor:
    """Return the tokens of all segments of each row. --> [rows, longest] int64"""
    joined = [[token for segment in row for token in segment.token_ids] for row in rows]
    return padded(joined, pad_token_id, device)


def whole_sequences(results: Sequence[Any], pad_token_id: int | None, device: torch.device) -> torch.Tensor:
    """Return the tokens of one window per row, with prompt and end token. --> [rows, longest] int64

    results: per row, its ids, or a dict of the fields of an output class.
    """
    rows = [row if isinstance(row, torch.Tensor) else row["sequences"] for row in results]
    return padded([row.tolist() for row in rows], pad_token_id, device)


def whole_times(results: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Return the time of each token of one window per row, in seconds. --> [rows, longest] float32"""
    return _padded_times([row["token_timestamps"] for row in results], device)


def whole_outputs(results: Sequence[Any], kind: type, pad_token_id: int | None, device: torch.device) -> Returned:
    """Return the fields of one window per row as one output class.

    kind: the class. Token times belong to none, so that the result is a dict with them.
    """
    found: dict[str, Any] = {"sequences": whole_sequences(results, pad_token_id, device)}
    for name in results[0].keys() - found.keys():
        values = [result[name] for result in results]
        if name in ("scores", "logits"):
            found[name] = steps_of(values, pad_token_id, device)
        elif name == "token_timestamps":
            found[name] = whole_times(results, device)
        elif isinstance(values[0], list | tuple):
            found[name] = stacked_states(name, values, device)
        elif values[0].ndim:
            found[name] = pad_sequence(values, batch_first=True, padding_value=-1).to(device)  # beam indices
        else:
            found[name] = torch.stack(values).to(device)
    if "token_timestamps" in found:
        return found
    whole: Returned = kind(**found)
    return whole


def encoded_once(whole: Returned, repeats: int) -> Returned:
    """Return an output class with the states of the encoder once per audio. repeats: of each audio's row."""
    if repeats > 1 and not isinstance(whole, torch.Tensor):
        for name in ("encoder_attentions", "encoder_hidden_states"):
            if whole.get(name) is not None:
                whole[name] = tuple(layer[::repeats] for layer in whole[name])
    return whole


def token_times(rows: Rows, device: torch.device) -> torch.Tensor:
    """Return the time of each token of each row in its window, in seconds. --> [rows, longest] float32"""
    return _padded_times([torch.cat([torch.empty(0, device="cpu"), *map(_times, row)]) for row in rows], device)


def _padded_times(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return times of several rows; shorter rows repeat their last time."""
    longest = max(map(len, rows))
    filled = [
        torch.nn.functional.pad(row, (0, longest - len(row)), value=float(row[-1]) if len(row) else 0.0) for row in rows
    ]
    return torch.stack(filled).to(device)


def segment_dicts(row: Sequence[Segment], *, with_times: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the segments of a row as transformers' dicts."""
    found = []
    for segment in row:
        width, result = segment.decoded.result
        entry: dict[str, Any] = {
            "start": torch.tensor(segment.start, dtype=torch.float64, device="cpu"),
            "end": torch.tensor(segment.end, dtype=torch.float64, device="cpu"),
            "tokens": torch.tensor(segment.token_ids, dtype=torch.int64, device=device),
            "idxs": (width + segment.first, width + segment.last),
            "result": result,
        }
        if with_times:
            entry["token_timestamps"] = _times(segment) + segment.offset
        found.append(entry)
    return found


def _times(segment: Segment) -> torch.Tensor:
    width, result = segment.decoded.result
    times: torch.Tensor = result["token_timestamps"][width + segment.first : width + segment.last]
    return times
