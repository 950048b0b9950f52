"""Tracer: records the PyTorch calls of one forward pass as a `torch.fx.Graph`.

Owns the encoding of calls and arguments. Knows no models, and records the calls of a cache like any other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.replay.operators import RepeatableOperators, Unrecordable

# Calls that return no tensor, and depend on nothing but shapes and types.
_METADATA = frozenset(
    (
        *("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset"),
        *("is_contiguous", "is_floating_point", "is_complex", "is_inference", "element_size", "get_device"),
    )
)
# Types of the arguments that fx writes into its code. Everything else becomes a constant.
_LITERALS = frozenset(
    (bool, int, float, complex, str, type(None), type(...))
    + (torch.dtype, torch.device, torch.layout, torch.memory_format)
)


class Tracer(TorchFunctionMode):
    """While the context lasts, records every call of a PyTorch function in this thread.

    Args:
        inputs: tensors of the pass, by name.
        sizes: numbers of the pass, by name.
        written: inputs that the pass can change in place.

    Attributes:
        graph: the calls, in order. Its inputs are the constants, then the cache, `inputs` and `sizes`.
        constants: objects that exist before the pass: parameters, buffers, and arguments other than literals.

    Raises:
        Unrecordable: if a list of calls cannot repeat the pass; see `RepeatableOperators`.
    """

    def __init__(
        self, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int], *, written: Iterable[torch.Tensor] = ()
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: list[Any] = []
        self._cache = self.graph.placeholder("cache")
        self._nodes: dict[int, fx.Node] = {}
        for name, tensor in inputs.items():
            self._nodes[id(tensor)] = node = self.graph.placeholder(name)
            node.meta = {"dtype": tensor.dtype, "shape": tensor.shape}
        self.sizes = {self.graph.placeholder(name): size for name, size in sizes.items()}
        # Identities name the objects, so each object must stay alive.
        self._alive: list[Any] = list(inputs.values())
        self._operators = RepeatableOperators(written)

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
        if getattr(func, "__name__", "") in _METADATA and not _has_tensors(result := func(*args, **options)):
            return result
        if func is F.dropout and options.get("training") is False:
            return args[0]  # in inference mode, a dispatch mode would make it a copy
        # An in-place call returns its argument under a new name, so arguments are encoded first.
        encoded, encoded_options = self._encode(tuple(args)), self._encode(options)
        num_writes = self._operators.num_writes
        result = func(*args, **options)
        writes = self._operators.num_writes > num_writes
        if not _has_tensors(result):
            _check_numbers(func, (args, options))
        elif writes or not any(result is each for each in args):
            # Calls that return their argument are left out.
            node = self._call(func, encoded, encoded_options)
            node.meta["writes"] = writes
            self._name(node, result)
        return result

    def _call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        if getattr(func, "__name__", "") != "__get__":
            return self.graph.call_function(func, args, kwargs)
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        if not name:
            raise Unrecordable(f"it reads an attribute without a name ({func})")
        return self.graph.call_function(getattr, (args[0], name))

    def call_cache(self, method: str, args: Sequence[Any], result: Any = None) -> None:
        """Record a call of a method of the cache, and the tensors that it returns."""
        node = self.graph.call_method(method, (self._cache, *self._encode(tuple(args))))
        if result is not None:
            self._name(node, result)

    def finish(self, *results: torch.Tensor) -> None:
        """Set the results of the pass: one tensor, or several as a tuple.

        Raises:
            Unrecordable: if no recorded call has computed them.
        """
        if any(id(result) not in self._nodes for result in results):
            raise Unrecordable("its result comes from a call that is not PyTorch's")
        nodes = tuple(self._nodes[id(result)] for result in results)
        self.graph.output(nodes[0] if len(nodes) == 1 else nodes)

    def _name(self, node: fx.Node, result: Any) -> None:
        """Let a node, or its items, stand for the tensors that a call has returned."""
        self._alive.append(result)
        if isinstance(result, torch.Tensor):
            node.meta |= {"dtype": result.dtype, "shape": result.shape}
            self._nodes[id(result)] = node
            return
        for index, part in enumerate(result):
            if isinstance(part, torch.Tensor):
                self._name(self.graph.call_function(operator.getitem, (node, index)), part)

    def _encode(self, value: Any) -> Any:
        """Return an argument with a node in place of each tensor and each constant."""
        if isinstance(value, tuple):
            return tuple(map(self._encode, value))
        if type(value) is list:
            return list(map(self._encode, value))
        if type(value) is dict:
            return {key: self._encode(entry) for key, entry in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._encode, (value.start, value.stop, value.step)))
        if type(value) in _LITERALS:
            return value
        if isinstance(value, AttentionParams) and id(value.bias) in self._nodes:
            fields = {name: self._encode(getattr(value, name)) for name in AttentionParams.__slots__}
            return self.graph.call_function(AttentionParams, (), fields)
        if id(value) not in self._nodes:
            self.constants.append(value)
            with self.graph.inserting_before(self._cache):
                self._nodes[id(value)] = self.graph.placeholder(f"constant_{len(self.constants)}")
        return self._nodes[id(value)]


def _has_tensors(tree: Any) -> bool:
    return isinstance(tree, torch.Tensor) or any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(tree))


def _check_numbers(func: Callable[..., Any], arguments: Any) -> None:
    """Refuse a call that returned no tensor, unless it reads nothing but shapes and types."""
    name = getattr(func, "__name__", repr(func))
    if name not in _METADATA and _has_tensors(arguments):
        raise Unrecordable(f"it reads or writes the values of tensors ({name})")
