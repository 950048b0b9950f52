"""CUDA graph capture of work on tensors with fixed addresses, and a check for work that no graph can hold.

Knows no models and no caches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unspool.runtimes.replay.operators import value_dependence

Work: TypeAlias = Callable[[], tuple[torch.Tensor, ...]]
"""Computes new tensors from tensors that it holds."""

# The first run of a layer sets up workspaces of libraries, which must not become part of a graph.
_WARM_UPS = 3

_ATEN = torch.ops.aten
_COPIES = frozenset((_ATEN._to_copy, _ATEN.copy, _ATEN.copy_))


class Uncapturable(Exception):
    """A CUDA graph cannot hold the work; the message says why."""


class GraphMaker(Protocol):
    """Turns work into its own repetition."""

    def make(self, work: Work) -> Work:
        """Do the work some times, and return a function that repeats it on the present contents of its tensors.

        The next repetition of any work made here overwrites the returned tensors.
        """
        ...


class CudaGraphs:
    """Captures work in CUDA graphs, which share their memory.

    Args:
        device: the CUDA device of all tensors of the work.
    """

    # A process can capture one graph at a time.
    _capturing = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def make(self, work: Work) -> Work:
        """See GraphMaker.make.

        Raises:
            RuntimeError: if CUDA cannot capture the work.
        """
        here = torch.cuda.current_stream(self._device)
        # A capture that fails can leave its own stream as the current one, so the last context sets it back.
        with self._capturing, torch.cuda.device(self._device), torch.cuda.stream(here):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            here.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # PyTorch frees a memory pool with its last graph, so only the pool of a living graph can be shared.
            alive = next(iter(self._graphs), None)
            memory = torch.cuda.graph_pool_handle() if alive is None else alive.pool()
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
                results = work()
            self._graphs.add(graph)

        def repeat() -> tuple[torch.Tensor, ...]:
            graph.replay()
            return results

        return repeat


class CaptureCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the mode is on, a CUDA graph must be able to hold each operator of this thread.

    A capture that fails leaves PyTorch's memory in disorder, so work runs under this check first.

    Raises:
        Uncapturable: if an operator reads values, draws random numbers, or copies between devices.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        with self:
            # A composite operator can be captured if its parts can.
            result = func.decompose(*args, **options)
        if result is not NotImplemented:
            return result
        if reason := value_dependence(func, args):
            raise Uncapturable(f"it {reason} ({func})")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Uncapturable(f"it draws random numbers ({func})")
        result = func(*args, **options)
        devices = {each.device for each in tree_leaves((args, result)) if isinstance(each, torch.Tensor)}
        if func.overloadpacket in _COPIES and len(devices) > 1:
            raise Uncapturable(f"it copies from one device to another ({func})")
        return result
