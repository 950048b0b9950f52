"""Work on tensors that stay where they are, made into what repeats it: CUDA graphs, and what those cannot hold.

Owns how a graph is captured, and how it is found out beforehand that work cannot be. Knows no models and no caches.
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
"""Does something with tensors that it holds, and returns others."""

# What a layer sets up when it is first used, such as a library's workspace, must not become part of a graph.
_WARM_UPS = 3

_ATEN = torch.ops.aten
_COPIES = frozenset((_ATEN._to_copy, _ATEN.copy, _ATEN.copy_))


class Uncapturable(Exception):
    """Work does something that a graph cannot repeat; the message says what."""


class GraphMaker(Protocol):
    """What turns work into its own repetition."""

    def make(self, work: Work) -> Work:
        """Do the work a few times, and return what repeats it on whatever its tensors hold by then.

        What the repetition returns is overwritten by the next one of anything that was made here.
        """
        ...


class CudaGraphs:
    """Captures work in CUDA graphs. They share their memory, so what one returns must be copied before another runs.

    Args:
        device: the CUDA device that all of the work is done on.
    """

    # The process may capture one graph at a time.
    _capturing = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def make(self, work: Work) -> Work:
        """See GraphMaker.make.

        Raises:
            RuntimeError: CUDA cannot capture it.
        """
        here = torch.cuda.current_stream(self._device)
        # A capture that breaks off may leave its own stream behind as the current one, hence the last of these.
        with self._capturing, torch.cuda.device(self._device), torch.cuda.stream(here):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            here.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Memory that no graph shares any more cannot be shared again.
            alive = next(iter(self._graphs), None)
            memory = torch.cuda.graph_pool_handle() if alive is None else alive.pool()
            # What other threads do meanwhile is no part of it.
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
                results = work()
            self._graphs.add(graph)

        def repeat() -> tuple[torch.Tensor, ...]:
            graph.replay()
            return results

        return repeat


class CaptureCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the mode lasts, in this thread, raises Uncapturable for what would break a capture off.

    A capture that breaks off leaves PyTorch's memory in disorder, so work is done once under this check before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        with self:
            # What consists of other calls can be captured where they can.
            result = func.decompose(*args, **options)
        if result is not NotImplemented:
            return result
        _check(func, args)
        result = func(*args, **options)
        places = {each.device for each in tree_leaves((args, result)) if isinstance(each, torch.Tensor)}
        if func.overloadpacket in _COPIES and len(places) > 1:
            raise Uncapturable(f"it copies from one device to another ({func})")
        return result


def _check(func: Any, args: Sequence[Any]) -> None:
    if reason := value_dependence(func, args):
        raise Uncapturable(f"it {reason} ({func})")
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise Uncapturable(f"it draws random numbers ({func})")
