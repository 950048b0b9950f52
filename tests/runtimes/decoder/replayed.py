"""What a CUDA graph is, on a CPU: the calls that some work made, made again on the same tensors, without any Python."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from unspool.runtimes.decoder.capture import Work


class Calls(TorchDispatchMode):
    """While the context lasts, notes every call of an operator, with its arguments and its result themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, *tree_map(_fixed, (args, kwargs or {})), result))
        return result

    def repeat(self) -> None:
        """Make the calls again, with their results where they were."""
        with torch.inference_mode():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and _memory(old) != _memory(new):
                        old.copy_(new)


def _fixed(value: Any) -> Any:
    """Return a parameter's memory as it now is, which a graph reads from then on."""
    return value.detach() if isinstance(value, torch.nn.Parameter) else value


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Replays:
    """A GraphMaker without CUDA. What one graph has returned is lost once another is repeated, as in shared memory.

    made, repeated: how many graphs were made, and how often any was repeated.
    """

    def __init__(self) -> None:
        self.made = self.repeated = 0
        self._newest: tuple[torch.Tensor, ...] = ()

    def make(self, work: Work) -> Work:
        """See GraphMaker.make."""
        self.made += 1
        work()
        with Calls() as calls:
            results = work()

        def repeat() -> tuple[torch.Tensor, ...]:
            self.repeated += 1
            with torch.inference_mode():
                for lost in self._newest:
                    lost.zero_()
            calls.repeat()
            self._newest = results
            return results

        return repeat
