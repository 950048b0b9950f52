"""Tracer: records the PyTorch calls of one forward pass as a list of steps, the tape.

Owns the rules for what can be recorded. Knows neither programs (program.py) nor what a cache does: it records calls of
the cache like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.kv.cache import UnmaskedCache
from unspool.runtimes.replay.operators import value_dependence, written_tensors

UPDATE, ATTEND = "update", "attend"
"""Names of the cache's methods, in place of a function."""

# Results that are no tensors and depend on nothing but shapes and types.
_METADATA = frozenset(
    (
        *("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset"),
        *("is_contiguous", "is_floating_point", "is_complex", "is_inference", "element_size", "get_device"),
    )
)


class Unrecordable(Exception):
    """A pass does something that a list of calls cannot repeat; the message says what."""


class Ref(NamedTuple):
    """A tensor that the pass is given (numbers 0, 1, ...) or has computed on the way."""

    number: int


class Constant(NamedTuple):
    """A tensor that is there before the pass: a parameter, a buffer, a constant."""

    tensor: torch.Tensor


class Slice(NamedTuple):
    """A slice: slices have no hash and no order, and hold what else needs writing down."""

    start: Any
    stop: Any
    step: Any


class Step(NamedTuple):
    """One call.

    func: a function, or the name of a method of the cache. args, kwargs: trees of Ref, Held, Slice and plain values.
    outputs: a number for each tensor that is returned, None for anything else. is_tuple: whether they come in one.
    """

    func: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    is_tuple: bool


class RepeatableOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the mode is on, each operator of this thread must be one that a list of calls can repeat.

    Shapes must not depend on values, so that the recorded shapes hold for other tokens. Operators must write only into
    tensors of the pass itself, so that the pass can run a second time.

    Raises:
        Unrecordable: if an operator reads values, has a result of data-dependent size, or changes a lasting tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made_here: set[int | None] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        with self:
            # A composite operator is repeatable if its parts are.
            result = func.decompose(*args, **options)
        if result is not NotImplemented:
            return result
        if reason := value_dependence(func, args):
            raise Unrecordable(f"it {reason} ({func})")
        if any(_storage(tensor) not in self._made_here for tensor in written_tensors(func, args, options)):
            raise Unrecordable(f"it changes a tensor that outlives the pass ({func})")
        given = set(_storages((args, options)))
        result = func(*args, **options)
        self._made_here.update(storage for storage in _storages(result) if storage not in given)
        return result


def _storages(tree: Any) -> Iterator[int | None]:
    return (_storage(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int | None:
    """Return what identifies a tensor's memory; None for a packed weight, which PyTorch gives no storage."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
    return storage


class Tracer(TorchFunctionMode):
    """While the context lasts, records every call of a PyTorch function in this thread.

    Args:
        inputs: the tensors that the pass is given.

    Attributes:
        steps: the calls, in order.

    Raises:
        Unrecordable: if a list of calls cannot repeat the pass; see `RepeatableOperators`.
    """

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self._count = len(inputs)
        # Whatever has a number stays alive, so that no other tensor can come by its identity.
        self._alive: list[Any] = list(inputs)
        self._operators = RepeatableOperators()

    def __enter__(self) -> Tracer:
        self._operators.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._operators.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        before = self.encode(tuple(args)), {name: self.encode(value) for name, value in options.items()}
        result = func(*args, **options)
        self.note(func, *before, result)
        return result

    def note(self, func: Callable[..., Any] | str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Write down a call whose arguments are encoded.

        Raises:
            Unrecordable: it returned what depends on the values of tensors.
        """
        is_tuple = isinstance(result, tuple | list)
        parts = tuple(result) if is_tuple else (result,)
        if not any(isinstance(part, torch.Tensor) for part in parts):
            _check(func, (args, kwargs))
            return
        outputs = tuple(self._number(part) if isinstance(part, torch.Tensor) else None for part in parts)
        self.steps.append(Step(func, args, kwargs, outputs, is_tuple))

    def _number(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        number = self._numbers[id(tensor)] = self._count
        self._count += 1
        return number

    def encode(self, value: Any) -> Any:
        """Return an argument with every tensor in it replaced by its Ref or Held."""
        if isinstance(value, torch.Tensor):
            number = self._numbers.get(id(value))
            return Constant(value) if number is None else Ref(number)
        if isinstance(value, slice):
            return Slice(*map(self.encode, (value.start, value.stop, value.step)))
        if isinstance(value, tuple | list):
            return type(value)(map(self.encode, value)) if type(value) in (tuple, list) else tuple(value)
        if isinstance(value, dict):
            return {key: self.encode(entry) for key, entry in value.items()}
        return value

    def number_of(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor that the pass has computed.

        Raises:
            Unrecordable: it came from elsewhere.
        """
        number = self._numbers.get(id(tensor))
        if number is None:
            raise Unrecordable("its result comes from a call that is not PyTorch's")
        return number


class TracedCache(UnmaskedCache):
    """What transformers takes for its cache while a tape runs: keeps nothing, and attends to nothing."""

    def __init__(self, tracer: Tracer, num_layers: int) -> None:
        super().__init__()
        self._tape, self._num_layers, self._layer = tracer, num_layers, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note that one layer's keys and values are written."""
        self._layer = layer_idx
        states = (key_states, value_states)
        self._tape.note(UPDATE, (*map(self._tape.encode, states), layer_idx), {}, states)
        return states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Note that one layer attends. --> [rows, heads, value width], of no meaning"""
        encoded = tuple(map(self._tape.encode, (query, key, value)))
        with torch._C.DisableTorchFunction():
            result = torch.zeros(
                query.shape[2], query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device
            )
        self._tape.note(ATTEND, (*encoded, params), {}, result)
        return result

    def __len__(self) -> int:
        return self._num_layers


def _check(func: Callable[..., Any] | str, arguments: Any) -> None:
    """Refuse a call that returned no tensor, unless it cannot have looked at the values of one."""
    name = func if isinstance(func, str) else getattr(func, "__name__", repr(func))
    if name not in _METADATA and any(tensors_in(arguments)):
        raise Unrecordable(f"it reads or writes the values of tensors ({name})")


def tensors_in(tree: Any) -> Iterator[Ref | Constant]:
    """Yield every tensor of a tree of encoded arguments."""
    if isinstance(tree, Ref | Constant):
        yield tree
    elif isinstance(tree, dict):
        for entry in tree.values():
            yield from tensors_in(entry)
    elif isinstance(tree, tuple | list):
        for entry in tree:
            yield from tensors_in(entry)
