"""CUDA graphs of decode steps: one graph per shape of a step, captured once and then replayed.

Owns the graphs, and the check that their results equal the model's. Knows sequences by their segments only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from weakref import ref

import torch

from unspool.runtimes.decoder.capture import CaptureCheck, CudaGraphs, GraphMaker, Work
from unspool.runtimes.decoder.decode_buffers import MOST_ROWS, Form, StaticCache, StaticPass, step_shape
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import SlotPool
from unspool.runtimes.wrap.model_copy import is_dispatched
from unspool.runtimes.wrap.probe import allowed_distance, distance
from unspool.types import Rows

Result: TypeAlias = tuple[Rows, list[bool]]
"""The rows of a pass, and for each feed whether its values were finite."""

# A graph costs about as much as so many steps, so a form that is met more seldom goes without.
_MEETINGS = 4
# Steps whose graph must have given what the model gave, each about something else than all before.
_PROOFS = 2
_MOST_GRAPHS = 32
_MOST_FORMS = 512


@dataclass(eq=False, slots=True)
class Graph:
    """A decode step that can be repeated.

    shown: what the steps were about for which it was made and compared. watches: tell that a pool is gone.
    """

    static: StaticPass
    repeat: Work
    shown: list[list[list[int]]]
    watches: list[ref[SlotPool]]

    @property
    def is_trusted(self) -> bool:
        """Whether it has been compared with the model often enough."""
        return len(self.shown) > _PROOFS


class Graphs:
    """The graphs of one runtime's decode steps.

    A pass goes the plain way until its form has been met a few times; then a graph is made of it, and trusted once it
    has given what the plain way gave. A graph dies with any pool that it reads, and with the weights.

    Args:
        shell: whose model runs.
        maker: what makes graphs.

    Attributes:
        obstacle: why no graph is made or repeated any more; "" where nothing is known to stand against it.
    """

    def __init__(self, decoder_model: DecoderModel, maker: GraphMaker) -> None:
        self._decoder_model, self._maker = decoder_model, maker
        self._version = decoder_model.version
        self.obstacle = ""
        self._meetings: OrderedDict[Form, int] = OrderedDict()
        self._graphs: OrderedDict[Form, Graph] = OrderedDict()
        self._weights: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._graphs)

    def describe(self) -> str:
        """Return what becomes of decode steps, in words."""
        if self.obstacle:
            return f"no CUDA graphs: {self.obstacle}"
        return f"CUDA graphs of decode steps of up to {MOST_ROWS} sequences"

    def run(self, batch: Batch, plain: Callable[[Batch], Result]) -> Result:
        """Run a pass, by a graph where one is trusted. plain: runs any pass."""
        if self._decoder_model.version != self._version:
            self.forget()
        form = None if self.obstacle else step_shape(batch, self._decoder_model.report.least_rows)
        if form is None:
            return plain(batch)
        graph = self._graphs.get(form)
        if graph is None:
            self._meet(form, batch)
            return plain(batch)
        self._graphs.move_to_end(form)
        return _repeat(graph, batch) if graph.is_trusted else self._prove(graph, batch, plain)

    def forget(self) -> None:
        """Drop all graphs, as the weights that they read may no longer be the model's."""
        self._version = self._decoder_model.version
        for kept in (self._graphs, self._meetings, self._weights):
            kept.clear()

    def _meet(self, form: Form, batch: Batch) -> None:
        """Count the form, and make a graph of it once that is worth while."""
        count = self._meetings.pop(form, 0) + 1
        if count > _MEETINGS:
            self._make(form, batch)
            return
        self._meetings[form] = count
        if len(self._meetings) > _MOST_FORMS:
            self._meetings.popitem(last=False)

    def _make(self, form: Form, batch: Batch) -> None:
        static = StaticPass(form, self._decoder_model.device)
        static.fill(batch)
        work = partial(_step, self._decoder_model, static)
        try:
            with CaptureCheck():
                work()
            repeat = self._maker.make(work)
        except Exception as error:  # whatever it is, the plain way says it again or does not have it
            self._give_up(f"a decode step cannot be captured: {_first_line(error)}")
            return
        finally:
            static.clear_padding()
        if not self._weights:
            # A graph reads memory, whoever that belongs to by then.
            module = self._decoder_model.module
            self._weights += [tensor.data for tensor in (*module.parameters(), *module.buffers())]
        if len(self._graphs) == _MOST_GRAPHS:
            self._graphs.popitem(last=False)
        purge = _purger(self)
        watches = [ref(pool, purge) for part in form if (pool := part.pool()) is not None]
        self._graphs[form] = Graph(static, repeat, [static.told], watches)

    def _prove(self, graph: Graph, batch: Batch, plain: Callable[[Batch], Result]) -> Result:
        """Go both ways, and return what the plain one gives; it writes last, so its keys and values stay."""
        try:
            rows, flags = _repeat(graph, batch)
        except Exception as error:
            self._give_up(f"a graph cannot be repeated: {_first_line(error)}")
            return plain(batch)
        found = [rows.logits, *_written(batch)]
        result = plain(batch)
        expected = [result[0].logits, *_written(batch)]
        apart = max(map(distance, found, expected))
        if flags != result[1] or apart > allowed_distance(self._decoder_model.module):
            self._give_up(f"a graph of {graph.static.num_rows} rows gave other results than the model")
        elif graph.static.told not in graph.shown:
            graph.shown.append(graph.static.told)
        return result

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        self.forget()

    def purge(self) -> None:
        """Drop the graphs of pools that are gone."""
        for form in [form for form in self._graphs if any(part.pool() is None for part in form)]:
            # What a graph held may have been the last of another pool, whose end has then been seen to on the way.
            self._graphs.pop(form, None)


def graphs_over(decoder_model: DecoderModel, maker: GraphMaker | None = None) -> Graphs | None:
    """Return graphs where the model lies on one CUDA device, or where a maker is given; else None."""
    devices = {decoder_model.device, *(layer.device for layer in decoder_model.layout)}
    if is_dispatched(decoder_model.module) or len(devices) > 1:
        return None
    if maker is None and decoder_model.device.type == "cuda":
        maker = CudaGraphs(decoder_model.device)
    return None if maker is None else Graphs(decoder_model, maker)


def _step(decoder_model: DecoderModel, static: StaticPass) -> tuple[torch.Tensor, ...]:
    """Do what a static pass was filled with. Returns logits [rows, vocab], and whether each row is finite, [rows]."""
    cache = StaticCache(static, len(decoder_model.layout))
    facts = static.facts
    logits = decoder_model.plain(cache, facts.ids[None], facts.positions[None], facts.keep)
    assert cache.finite is not None, "the last layer was not reached"
    return logits, cache.finite


def _repeat(graph: Graph, batch: Batch) -> Result:
    static, are_finite = graph.static, False
    static.fill(batch)
    try:
        logits, finite = graph.repeat()
        # A copy, since the next graph writes where this one has written.
        rows = Rows(logits[: len(batch.asked)].to(torch.float32, copy=True))
        flags = finite.tolist()
        are_finite = all(flags)
    finally:
        if not are_finite:
            static.clear_padding()
    return batch.unpad(rows), [flags[static.row_of(span)] for span in batch.spans]


def _written(batch: Batch) -> list[torch.Tensor]:
    """Return what now lies where the tokens' keys and values go: [heads, width] a token, layer and kind."""
    return [
        states[span.slot, :, span.start].clone()
        for span in batch.spans
        for states in (*span.pool.keys, *span.pool.values)
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _purger(graphs: Graphs) -> Callable[[Any], None]:
    """Return what drops the graphs of pools that are gone, without keeping the graphs alive."""
    watched = ref(graphs)

    def purge(_: Any) -> None:
        graphs = watched()
        if graphs is not None:
            graphs.purge()

    return purge
