"""Capture in CUDA graphs against a stand-in for torch.cuda, and the check for work that no graph can hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from unspool.runtimes.decoder.capture import CaptureCheck, CudaGraphs, Uncapturable

NUMBERS, PLACES = torch.arange(6.0), torch.tensor([4, 1])


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda: NUMBERS.sum().item(), "reads values"),
        (lambda: NUMBERS.nonzero(), "size that depends on values"),
        (lambda: torch.nn.functional.dropout(NUMBERS, 0.5, True), "random"),
        (lambda: NUMBERS.to("meta"), "from one device to another"),
        (lambda: torch.empty(6, device="meta").copy_(NUMBERS), "from one device to another"),
    ],
)
def test_the_check_finds_work_that_no_graph_can_hold(work: Callable[[], Any], reason: str) -> None:
    with torch.inference_mode(), pytest.raises(Uncapturable, match=reason), CaptureCheck():
        work()


def test_the_check_lets_other_work_pass() -> None:
    with torch.inference_mode(), CaptureCheck():
        found = NUMBERS[PLACES] + torch.nn.functional.dropout(NUMBERS[PLACES], 0.5, False)
        held = NUMBERS.clone()
        held[PLACES] = held.index_select(0, PLACES).to(torch.float64).softmax(-1).to(torch.float32)
    assert found.tolist() == [8.0, 2.0] and held.tolist()[1] < held.tolist()[4] < 1


class _Cuda:
    """Stand-in for the names of torch.cuda that capture a graph. Records the order of their use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.story: list[str] = []
        self.fails, self.current, cuda = fails, "user", self
        handles = (f"pool {number}" for number in itertools.count(1))

        class Stream(str):
            def wait_stream(self, other: str) -> None:
                cuda.story.append(f"{self} waits for {other}")

        class Graph:
            def replay(self) -> None:
                cuda.story.append("replay")

            def pool(self) -> str:
                return self.memory

            memory = ""

        self.user = self.current = Stream("user")
        monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        monkeypatch.setattr(torch.cuda, "graph", self._graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    @contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _graph(self, graph: Any, *, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        graph.memory, before = pool, self.current
        self.story.append(f"capture into {pool}, {capture_error_mode}")
        self.current = stream
        yield
        if self.fails:  # and leaves its own stream behind
            raise RuntimeError("capture broke off")
        self.current = before
        self.story.append("end")


def test_a_capture_is_warmed_up_aside_and_shares_memory_while_another_graph_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _Cuda(monkeypatch)
    maker = CudaGraphs(torch.device("cuda", 1))

    def work() -> tuple[torch.Tensor, ...]:
        cuda.story.append(f"work on {cuda.current}")
        return (NUMBERS,)

    repeat = maker.make(work)
    warm_up = ["side waits for user", *["work on side"] * 3, "user waits for side"]
    assert cuda.story == [*warm_up, "capture into pool 1, thread_local", "work on side", "end"]
    cuda.story.clear()
    assert repeat() == (NUMBERS,) and cuda.story == ["replay"]
    again = maker.make(work)
    assert "capture into pool 1, thread_local" in cuda.story
    del repeat, again
    maker.make(work)
    assert "capture into pool 2, thread_local" in cuda.story


def test_after_a_capture_that_breaks_off_the_stream_is_the_one_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch, fails=True)
    with pytest.raises(RuntimeError, match="broke off"):
        CudaGraphs(torch.device("cuda", 1)).make(lambda: (NUMBERS,))
    assert cuda.current is cuda.user
