"""Caches of any form as pytrees: transformers' caches, recurrent states, tuples.

A *tree* is one cache: containers and objects with tensors as leaves. A `BatchedCache` is the tree of several sequences
of one length, a `CacheSlice` one sequence of it. A tree in a `BatchedCache` never changes, because calls get a copy. So
a fork is another reference to the same slice. Knows no model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from unspool.runtimes.wrap.model_copy import has_usual_copies

Tree: TypeAlias = Any
Path: TypeAlias = tuple[Any, ...]

_ATOMS: Final = (nn.Module, PreTrainedConfig, type, FunctionType, bytes)
_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype, torch.device)
_SIMPLE: Final[frozenset[Any]] = frozenset(_PLAIN)
"""The classes of most attributes of a cache: numbers, flags and names."""


_Form: TypeAlias = Literal["atom", "tensor", "tuple", "list", "mapping", "object"]


@cache
def _form(kind: type) -> _Form:
    """Return how the parts of an object of this class are read."""
    forms: tuple[tuple[Any, _Form], ...] = (
        ((*_ATOMS, *_PLAIN), "atom"),
        (torch.Tensor, "tensor"),
        (tuple, "tuple"),
        (list, "list"),
        (Mapping, "mapping"),
    )
    return next((form for kinds, form in forms if issubclass(kind, kinds)), "object")


def _children(tree: Tree) -> Mapping[Any, Any] | None:
    """Return the parts of a container or object by key; None for an atom."""
    kind: Any = type(tree)
    form = _form(kind)
    if form == "atom":
        return None
    if form == "tuple" or form == "list":
        return dict(enumerate(tree))
    return tree if form == "mapping" else getattr(tree, "__dict__", None)


def leaves(tree: Tree) -> dict[Path, torch.Tensor]:
    """Return every tensor of the tree by its path."""
    found: dict[Path, torch.Tensor] = {}

    def add(path: Path, leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor):
            found[path] = leaf

    _visit(tree, (), set(), add, _SIMPLE)
    return found


def cloned(tree: Tree) -> Tree:
    """Return a copy of the tree with copies of its tensors."""
    return rebuild(tree, lambda _, tensor: tensor.clone())


def frame(tree: Tree) -> dict[Path, Any]:
    """Return everything but the tensors by its path: numbers, flags and names, and the identities of other objects."""
    found: dict[Path, Any] = {}

    def add(path: Path, leaf: Any) -> None:
        if not isinstance(leaf, torch.Tensor):
            found[path] = leaf if isinstance(leaf, _PLAIN) else id(leaf)

    _visit(tree, (), set(), add, frozenset())
    return found


def _visit(tree: Tree, path: Path, seen: set[int], use: Callable[[Path, Any], None], skipped: frozenset[Any]) -> None:
    """Call `use` for the leaves, tensors and atoms, in order; parts of the skipped classes are left out."""
    children = None if isinstance(tree, torch.Tensor) else _children(tree)
    if children is None:
        use(path, tree)
        return
    if id(tree) in seen:
        return
    seen.add(id(tree))
    for key, child in children.items():
        if type(child) not in skipped:
            _visit(child, (*path, key), seen, use, skipped)


def rebuild(tree: Tree, change: Callable[[Path, torch.Tensor], torch.Tensor]) -> Tree:
    """Return a copy of the tree with `change(path, tensor)` for each tensor; shared objects stay shared."""
    return _rebuild(tree, (), change, {})


def _rebuild(
    tree: Tree, path: Path, change: Callable[[Path, torch.Tensor], torch.Tensor], done: dict[int, Any]
) -> Tree:
    if (known := done.get(id(tree))) is not None:
        return known
    kind: Any = type(tree)
    if kind is dict:  # by far the most common part, in each step of a model
        parts = twin = done[id(tree)] = tree.copy()
    elif (form := _form(kind)) == "tensor":
        done[id(tree)] = change(path, tree)
        return done[id(tree)]
    elif (children := _children(tree)) is None:
        return tree
    elif form == "tuple":
        items = [_rebuild(child, (*path, key), change, done) for key, child in children.items()]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    else:
        twin = done[id(tree)] = _shallow(tree)
        parts = twin.__dict__ if form == "object" else twin
        tree = children
    for key, child in tree.items():
        if type(child) not in _SIMPLE:
            parts[key] = _rebuild(child, (*path, key), change, done)
    return twin


def _shallow(tree: Tree) -> Tree:
    """Return `copy.copy(tree)`, which takes several times as long for an object."""
    kind: Any = type(tree)
    if kind is dict or kind is list:
        return tree.copy()
    if not has_usual_copies(kind):
        return copy.copy(tree)
    twin = object.__new__(kind)
    vars(twin).update(vars(tree))
    return twin


class Kind(NamedTuple):
    """The layout of a leaf. batch: its batch dimension; None if shared. grows: True if it grows with each token."""

    batch: int | None
    grows: bool


class CacheSchema:
    """The layout of the leaves of a model's trees, learned from three examples.

    Args:
        one, two: trees of one sequence and of two, of the same length; `two` is None if sequences cannot be batched.
        longer: the tree of the two sequences, or of the one without `two`, after more tokens.

    Attributes:
        can_stack: True if sequences of one length can be batched.
        is_fixed: True if they can, and no leaf grows: the cache is a recurrent state.
    """

    def __init__(self, one: Tree, two: Tree | None, longer: Tree) -> None:
        first, last = leaves(one), leaves(longer)
        both = first if two is None else leaves(two)
        self._kinds: dict[Path, Kind] = {}
        self.can_stack = two is not None and first.keys() == both.keys() == last.keys()
        for path, tensor in first.items():
            grows = path in both and path in last and last[path].shape != both[path].shape
            wider = _differing(tensor, both[path]) if self.can_stack else []
            self.can_stack = self.can_stack and (wider is not None and len(wider) <= 1)
            self._kinds[path] = Kind(wider[0] if wider else None, grows)
        fixed = (kind.batch is not None and not kind.grows for kind in self._kinds.values())
        self.is_fixed = self.can_stack and bool(self._kinds) and all(fixed)

    def copied(self, tree: Tree) -> Tree:
        """Return a copy that a call can change. Every call replaces the leaves that grow, so they are not copied."""

        def own(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            kind = self._kinds.get(path)
            return tensor if kind is not None and kind.grows else tensor.clone()

        return rebuild(tree, own)

    def gathered_states(self, shares: Sequence[CacheSlice]) -> dict[Path, torch.Tensor]:
        """Return copies of the leaves of all shares, in their order; only if `is_fixed`."""
        runs = list(_runs(shares))
        return {path: self._joined(path, kind.batch or 0, runs) for path, kind in self._kinds.items()}

    def _joined(self, path: Path, dim: int, runs: Sequence[tuple[BatchedCache, list[int]]]) -> torch.Tensor:
        parts = [_rows_of(stack.tensors[path], dim, rows, stack.rows) for stack, rows in runs]
        if len(parts) > 1:
            return torch.cat(parts, dim)
        return parts[0].clone() if parts[0] is runs[0][0].tensors[path] else parts[0]

    def repeated(self, states: Mapping[Path, torch.Tensor], rows: torch.Tensor) -> dict[Path, torch.Tensor]:
        """Return some rows of the leaves; only if `is_fixed`. rows: indices."""
        return {
            path: state.index_select(self._kinds[path].batch or 0, rows.to(state.device))
            for path, state in states.items()
        }

    def gathered(self, shares: Sequence[CacheSlice], length: int) -> Tree:
        """Return one tree that a call can change, of the first `length` tokens of each share, in their order."""
        stacks = list({id(share.stack): share.stack for share in shares}.values())
        trees = {id(stack): shortened(stack, length) for stack in stacks}
        if len(stacks) == 1 and [share.row for share in shares] == list(range(stacks[0].rows)):
            return self.copied(trees[id(stacks[0])])
        by_stack = {key: leaves(tree) for key, tree in trees.items()}
        runs = list(_runs(shares))

        def gather(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            # Tensors that text alone does not make, such as keys of an image, have a row per sequence.
            kind = self._kinds.get(path, Kind(0 if tensor.shape[:1] == (shares[0].stack.rows,) else None, False))
            if kind.batch is None:
                return tensor.clone()
            dim = kind.batch
            parts = [_rows_of(by_stack[id(stack)][path], dim, rows, stack.rows) for stack, rows in runs]
            return torch.cat(parts, dim) if len(parts) > 1 else parts[0]

        return rebuild(trees[id(shares[0].stack)], gather)


def _differing(one: torch.Tensor, two: torch.Tensor) -> list[int] | None:
    """Return the dimensions that are 1 in the first and 2 in the second; None if others differ."""
    if one.ndim != two.ndim:
        return None
    dims = [dim for dim in range(one.ndim) if one.shape[dim] != two.shape[dim]]
    return dims if all((one.shape[dim], two.shape[dim]) == (1, 2) for dim in dims) else None


def _runs(shares: Sequence[CacheSlice]) -> Iterator[tuple[BatchedCache, list[int]]]:
    """Yield adjacent shares of one stack together."""
    stack, rows = shares[0].stack, [shares[0].row]
    for share in shares[1:]:
        if share.stack is stack:
            rows.append(share.row)
        else:
            yield stack, rows
            stack, rows = share.stack, [share.row]
    yield stack, rows


def _rows_of(tensor: torch.Tensor, dim: int, rows: list[int], count: int) -> torch.Tensor:
    """Return some rows of a tensor of `count` rows; the tensor itself for all of them in order."""
    if rows == list(range(count)):
        return tensor
    return tensor.index_select(dim, torch.tensor(rows, device=tensor.device))


class BatchedCache:
    """The tree of several sequences of one length.

    Args:
        tree: must not change later.
        rows: number of sequences.
        length: tokens per sequence.
        tensors: leaves in place of those of the tree; None for its own.
    """

    __slots__ = ("_frame", "_is_built", "_tensors", "_tree", "length", "rows")

    def __init__(self, tree: Tree, rows: int, length: int, tensors: dict[Path, torch.Tensor] | None = None) -> None:
        self._tree, self._tensors, self.rows, self.length = tree, tensors, rows, length
        self._is_built = tensors is None
        self._frame: dict[Path, Any] | None = None

    @property
    def tree(self) -> Tree:
        """The tree with its leaves."""
        if not self._is_built:
            self._tree, self._is_built = rebuild(self._tree, lambda path, _: self.tensors[path]), True
        return self._tree

    @property
    def tensors(self) -> dict[Path, torch.Tensor]:
        """The leaves; see `leaves`."""
        if self._tensors is None:
            self._tensors = leaves(self._tree)
        return self._tensors

    @property
    def frame(self) -> dict[Path, Any]:
        """Everything but the leaves; see `frame`."""
        if self._frame is None:
            self._frame = frame(self._tree)
        return self._frame

    def changed(self, tensors: dict[Path, torch.Tensor], rows: int, length: int) -> BatchedCache:
        """Return the same tree with other leaves."""
        other = BatchedCache(self._tree, rows, length, tensors)
        other._frame = self.frame
        return other


class CacheSlice(NamedTuple):
    """The first `length` tokens of one sequence of a stack."""

    stack: BatchedCache
    row: int
    length: int


def can_shorten(tree: Tree) -> bool:
    """Return True if any number of tokens can be removed from the end of the tree."""
    return isinstance(tree, Cache) and all(_can_shorten(layer) for layer in tree.layers)


def _can_shorten(layer: Any) -> bool:
    if not getattr(layer, "is_croppable", hasattr(layer, "keys") and not hasattr(layer, "recurrent_states")):
        return False
    if hasattr(layer, "conv_states"):
        return False  # it would need the earlier states, which are not kept
    window = getattr(layer, "sliding_window", None)
    return window is None or layer.get_seq_length() < window


def shortened(stack: BatchedCache, length: int) -> Tree:
    """Return the stack's tree with only the first `length` tokens; it shares the stack's tensors."""
    if length == stack.length:
        return stack.tree
    tree = rebuild(stack.tree, lambda path, tensor: tensor)
    tree.crop(length - stack.length)
    return tree
