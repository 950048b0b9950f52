"""A pass that was written down, as one plain Python function: the same calls without the module tree around them.

Two tapes of passes of different sizes are joined: a number that differs is a multiple of the number of rows, or of
those asked for. So one program serves every size. Knows neither models nor caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.replay.fuse_residual_add import fuse_residual_adds
from unspool.runtimes.replay.tracer import Constant, Ref, Slice, Step, Unrecordable, tensors_in

INPUTS = ("ids", "positions", "keep")
_SIZES = ("rows", "asked")


class Size(NamedTuple):
    """How large a taped pass was. rows: tokens. asked: rows of logits."""

    rows: int
    asked: int


# No number is a multiple of the rows in both and of the asked in both, so that a pair names one of them.
SIZES = (Size(11, 5), Size(13, 7))


class Times(NamedTuple):
    """`factor` times the rows, or the rows asked for, of a pass."""

    factor: int
    name: str


class Program:
    """Carries out what two tapes have in common.

    Args:
        tapes: the steps of two passes of the sizes `SIZES`, whose inputs are `INPUTS`.
        result: number of the tensor that each of them returned.
        fused: whether packed layers add what their results are added to. Whether that can be done depends on shapes,
            which tapes do not hold.

    Raises:
        Unrecordable: the two differ in more than their size.
    """

    def __init__(self, tapes: tuple[Sequence[Step], Sequence[Step]], result: int, *, fused: bool = False) -> None:
        first, second = tapes
        if len(first) != len(second):
            raise Unrecordable("what it calls depends on the number of tokens")
        steps = [_joined_step(a, b) for a, b in zip(first, second, strict=True)]
        steps, result = _without_dropout(steps, result)
        steps = _without_waste(steps, result)
        if fused:
            steps = fuse_residual_adds(steps, result)
        self._names: dict[str, Any] = {}
        self.source = "\n".join(self._lines(steps, result))
        exec(compile(self.source, "<a recorded pass>", "exec"), self._names)

    def __call__(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Run the pass. ids, positions: [1, rows]. keep: [asked], rows whose result is wanted."""
        result: torch.Tensor = self._names["run"](cache, ids, positions, keep, ids.shape[1], keep.shape[0])
        return result

    def _lines(self, steps: Sequence[Step], result: int) -> Iterator[str]:
        yield f"def run(cache, {', '.join(INPUTS)}, {', '.join(_SIZES)}):"
        for number, name in enumerate(INPUTS):
            yield f"    t{number} = {name}"
        last = _last_uses(steps)
        for index, step in enumerate(steps):
            yield f"    {self._call(step)}"
            if gone := [f"t{number}" for number in last.get(index, ()) if number != result]:
                yield f"    del {', '.join(gone)}"
        yield f"    return t{result}"

    def _call(self, step: Step) -> str:
        func = f"cache.{step.func}" if isinstance(step.func, str) else self._name("f", step.func)
        given = [self._text(value) for value in step.args]
        given += [f"{name}={self._text(value)}" for name, value in step.kwargs.items()]
        targets = ["_" if number is None else f"t{number}" for number in step.outputs]
        return f"{', '.join(targets)}{',' if step.is_tuple else ''} = {func}({', '.join(given)})"

    def _text(self, value: Any) -> str:
        """Return an argument as source text; what has none gets a name."""
        if isinstance(value, Ref):
            return f"t{value.number}"
        if isinstance(value, Times):
            return value.name if value.factor == 1 else f"{value.factor} * {value.name}"
        if isinstance(value, Slice):
            return f"slice({', '.join(map(self._text, value))})"
        if isinstance(value, Constant):
            return self._name("c", value.tensor)
        if isinstance(value, tuple):
            return f"({''.join(self._text(entry) + ', ' for entry in value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self._text(entry)}' for key, entry in value.items())}}}"
        if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self._name("c", value)

    def _name(self, kind: str, value: Any) -> str:
        name = f"{kind}{id(value)}"  # `_names` keeps it alive
        self._names[name] = value
        return name


def _joined_step(first: Step, second: Step) -> Step:
    if first.func is not second.func and first.func != second.func:
        raise Unrecordable("what it calls depends on the number of tokens")
    if first.outputs != second.outputs:
        raise Unrecordable("how much a call returns depends on the number of tokens")
    args, kwargs = _joined(first.args, second.args), _joined(first.kwargs, second.kwargs)
    return first._replace(args=args, kwargs=kwargs)


def _joined(first: Any, second: Any) -> Any:
    """Return what two arguments have in common, with `Times` where they differ in size."""
    if type(first) is not type(second):
        raise Unrecordable("a call's arguments depend on the number of tokens")
    if isinstance(first, Constant):
        return _same(first, second, first.tensor is second.tensor)
    if isinstance(first, AttentionParams):
        names = AttentionParams.__slots__
        return _same(
            first,
            second,
            all(getattr(first, name) is getattr(second, name) for name in names) or _terms(first) == _terms(second),
        )
    if isinstance(first, Ref):
        return _same(first, second, first == second)
    if isinstance(first, Slice):
        return Slice(*map(_joined, first, second))
    if isinstance(first, tuple | list):
        _same(first, second, len(first) == len(second))
        return type(first)(map(_joined, first, second))
    if isinstance(first, dict):
        _same(first, second, first.keys() == second.keys())
        return {key: _joined(first[key], second[key]) for key in first}
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        return _times(first, second)
    return _same(first, second, first is second or bool(first == second))


def _terms(params: AttentionParams) -> tuple[Any, ...]:
    return params.scaling, params.window, params.softcap, id(params.sinks)


def _same(first: Any, second: Any, is_same: bool) -> Any:
    if not is_same:
        raise Unrecordable(f"an argument is {second!r:.80} in one pass and {first!r:.80} in another")
    return first


def _times(first: int, second: int) -> Times:
    for name, a, b in zip(_SIZES, *SIZES, strict=True):
        factor, rest = divmod(first, a)
        if not rest and factor * b == second:
            return Times(factor, name)
    raise Unrecordable(f"a number is {first} for {SIZES[0].rows} tokens and {second} for {SIZES[1].rows}")


def _without_dropout(steps: Sequence[Step], result: int) -> tuple[list[Step], int]:
    """Return the steps, and the number of the result, without the calls that return the very tensor they are given."""
    same: dict[int, Ref] = {}
    kept = []
    for step in steps:
        step = step._replace(args=_renamed(step.args, same), kwargs=_renamed(step.kwargs, same))
        given, number = step.args[0] if step.args else None, step.outputs[0]
        if step.func is F.dropout and step.kwargs.get("training") is False and isinstance(given, Ref):
            assert number is not None
            same[number] = given
        else:
            kept.append(step)
    return kept, same.get(result, Ref(result)).number


def _renamed(tree: Any, names: Mapping[int, Ref]) -> Any:
    """Return a tree of arguments with other names for some tensors."""
    if isinstance(tree, Ref):
        return names.get(tree.number, tree)
    if isinstance(tree, dict):
        return {key: _renamed(entry, names) for key, entry in tree.items()}
    if isinstance(tree, Slice):
        return Slice(*(_renamed(entry, names) for entry in tree))
    if type(tree) in (tuple, list):
        return type(tree)(_renamed(entry, names) for entry in tree)
    return tree


def _without_waste(steps: Sequence[Step], result: int) -> list[Step]:
    """Return the steps that the result or a cache needs. A step that writes into a tensor counts as needed."""
    needed, kept = {result}, []
    for step in reversed(steps):
        if isinstance(step.func, str) or _writes(step) or needed & set(step.outputs):
            kept.append(step)
            needed.update(_refs(step))
    return kept[::-1]


def _writes(step: Step) -> bool:
    """Return whether a call changes one of its arguments, going by the names that PyTorch gives to such calls."""
    name = getattr(step.func, "__name__", "")
    is_operator = name.startswith("__i") and name not in ("__invert__", "__index__")
    return is_operator or (name.endswith("_") and not name.endswith("__")) or "out" in step.kwargs


def _refs(step: Step) -> Iterator[int]:
    return (tensor.number for tensor in tensors_in((step.args, step.kwargs)) if isinstance(tensor, Ref))


def _last_uses(steps: Sequence[Step]) -> dict[int, list[int]]:
    """Return, by the index of a step, the numbers of the tensors that nobody reads behind it."""
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for number in (*_refs(step), *(n for n in step.outputs if n is not None)):
            last[number] = index
    found: dict[int, list[int]] = {}
    for number, index in last.items():
        found.setdefault(index, []).append(number)
    return found
