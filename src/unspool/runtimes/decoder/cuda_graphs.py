"""CUDA graphs of decode steps, one per pool of slots and bucket of rows. Experimental: not run on a GPU yet.

Owns the graphs, and their check against the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch

from unspool.runtimes.decoder.capture import CaptureCheck, CudaGraphs, GraphMaker, Work
from unspool.runtimes.decoder.decode_buffers import BufferedCache, DecodeBuffers, bucket_of
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import SlotPool
from unspool.runtimes.wrap.model_copy import is_dispatched
from unspool.runtimes.wrap.probe import allowed_distance, distance
from unspool.tuning import GRAPH_MAX_ROWS
from unspool.types import Rows

Result: TypeAlias = tuple[Rows, list[bool]]
"""The rows of a pass, and for each feed whether its values were finite."""


@dataclass(eq=False, slots=True)
class Graph:
    """A captured decode step. captured: the inputs of the step that was captured. verified: whether it is trusted."""

    buffers: DecodeBuffers
    repeat: Work
    captured: list[list[int]]
    verified: bool = False


class Graphs:
    """The CUDA graphs of one runtime's decode steps.

    The first step of a bucket is captured and runs as a plain pass. The next step runs both ways: if the graph gives
    the results of the plain pass, it serves all later steps. Graphs are dropped with their pool, and with the weights.

    Args:
        decoder_model: the model that runs.
        maker: makes the graphs.

    Attributes:
        obstacle: why graphs are off; "" if they are on.
    """

    def __init__(self, decoder_model: DecoderModel, maker: GraphMaker) -> None:
        self._decoder_model, self._maker = decoder_model, maker
        self._version = decoder_model.version
        self.obstacle = ""
        self._graphs: WeakKeyDictionary[SlotPool, dict[int, Graph]] = WeakKeyDictionary()
        self._weights: list[torch.Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._graphs.values()))

    def describe(self) -> str:
        """Return in words if decode steps are captured."""
        if self.obstacle:
            return f"no CUDA graphs: {self.obstacle}"
        return f"CUDA graphs of decode steps of up to {GRAPH_MAX_ROWS} sequences (experimental)"

    def run(self, batch: Batch, plain: Callable[[Batch], Result]) -> Result:
        """Run a pass, by a graph if one is trusted. plain: runs any pass."""
        if self._decoder_model.version != self._version:
            self.forget()
        rows = None if self.obstacle else bucket_of(batch)
        if rows is None:
            return plain(batch)
        graph = self._graphs.get(batch.spans[0].pool, {}).get(rows)
        if graph is None:
            self._capture(batch, rows)
            return plain(batch)
        return self._repeat(graph, batch, plain)

    def forget(self) -> None:
        """Drop all graphs: the weights that they read have changed."""
        self._version = self._decoder_model.version
        self._graphs.clear()
        self._weights.clear()

    def _capture(self, batch: Batch, rows: int) -> None:
        pool, buffers = batch.spans[0].pool, DecodeBuffers(rows, self._decoder_model.device)
        buffers.fill(batch)
        work = partial(_step, self._decoder_model, pool, buffers)
        try:
            with CaptureCheck():
                work()
            repeat = self._maker.make(work)
        except Exception as error:  # of any kind: the plain pass reports its own errors
            self._give_up(f"a decode step cannot be captured: {_first_line(error)}")
            return
        if not self._weights:
            # A graph reads addresses, so the weights must stay there.
            module = self._decoder_model.module
            self._weights += [tensor.data for tensor in (*module.parameters(), *module.buffers())]
        self._graphs.setdefault(pool, {})[rows] = Graph(buffers, repeat, buffers.filled)

    def _repeat(self, graph: Graph, batch: Batch, plain: Callable[[Batch], Result]) -> Result:
        """Run the graph. Until it is verified, run the plain pass after it: its keys and values stay."""
        try:
            found = _run_graph(graph, batch)
        except Exception as error:
            self._give_up(f"a graph cannot be repeated: {_first_line(error)}")
            return plain(batch)
        if graph.verified:
            return found
        written = _written(batch)
        expected = plain(batch)
        pairs = [(found[0].logits, expected[0].logits), *zip(written, _written(batch), strict=True)]
        allowed = allowed_distance(self._decoder_model.module)
        if found[1] != expected[1] or any(distance(*pair) > allowed for pair in pairs):
            self._give_up(f"a graph of {graph.buffers.rows} rows gave other results than the model")
        else:
            # The captured step itself proves nothing: a graph that ignores its inputs repeats it as well.
            graph.verified = graph.buffers.filled != graph.captured
        return expected

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        self.forget()


def graphs_over(decoder_model: DecoderModel, maker: GraphMaker | None = None) -> Graphs | None:
    """Return graphs if the model is on one CUDA device, or if a maker is given; else None."""
    devices = {decoder_model.device, *(layer.device for layer in decoder_model.layout)}
    if is_dispatched(decoder_model.module) or len(devices) > 1:
        return None
    if maker is None and decoder_model.device.type == "cuda":
        maker = CudaGraphs(decoder_model.device)
    return None if maker is None else Graphs(decoder_model, maker)


def _step(decoder_model: DecoderModel, pool: SlotPool, buffers: DecodeBuffers) -> tuple[torch.Tensor, ...]:
    """Run the step in the buffers. Returns logits [rows, vocab], and whether each row is finite, [rows]."""
    cache = BufferedCache(pool, buffers, len(decoder_model.layout))
    logits = decoder_model.plain(cache, buffers.ids[None], buffers.positions[None], buffers.keep)
    assert cache.finite is not None, "the last layer was not reached"
    return logits, cache.finite


def _run_graph(graph: Graph, batch: Batch) -> Result:
    graph.buffers.fill(batch)
    logits, finite = graph.repeat()
    # The next graph overwrites the results, so they are copied.
    rows = Rows(logits[: len(batch.asked)].to(torch.float32, copy=True))
    flags = finite.tolist()
    return rows, [flags[span.row] for span in batch.spans]


def _written(batch: Batch) -> list[torch.Tensor]:
    """Return the tokens' keys and values in the cache, [heads, width] for each token, layer and kind."""
    return [
        states[span.slot, :, span.start].clone()
        for span in batch.spans
        for states in (*span.pool.keys, *span.pool.values)
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
