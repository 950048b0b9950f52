"""Short trials of a model: what each of its own ways of running says about a few tokens, against the plainest one.

The plainest way is one whole forward for every position, as the first step of transformers' `generate` makes it: what
it says is right by definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSchema, CacheSlice, can_shorten
from unspool.runtimes.generic.model import CausalModel, ModelOutput
from unspool.runtimes.model_info import max_positions
from unspool.runtimes.wrap.model_copy import modules_of
from unspool.runtimes.wrap.probe import Readable, allowed_distance, distance

Habits = TypeVar("Habits")

_OPENING, _LENGTH = 3, 6


class Reference(NamedTuple):
    """The model's own logits for two short sequences.

    ids: [2, length]. logits: [vocab] each, by (sequence, number of its first tokens that were read). opening: length of
    the part that is read first.
    """

    ids: torch.Tensor
    logits: dict[tuple[int, int], torch.Tensor]
    opening: int

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self.ids.shape[1]

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return len(next(iter(self.logits.values())))


def make_reference(model: CausalModel) -> Reference:
    """Compute the reference, one sequence and one length at a time; learn what can be read of the model.

    Raises:
        ModelError: the model does not run.
    """
    count, limit = model.num_embeddings, max_positions(model.wrapped.module)
    length = _LENGTH if limit is None else max(2, min(_LENGTH, limit))
    opening = min(_OPENING, length - 1)
    first = [count * part // (_LENGTH + 2) for part in range(1, length + 1)]
    ids = torch.tensor([first, first[::-1]], device=model.wrapped.device)
    beginnings = [(0, count) for count in range(opening, length + 1)] + [(1, opening), (1, opening + 1)]
    try:
        model.learn(first)
        logits = {(n, count): model.next_row(ids[n : n + 1, :count]).logits[0] for n, count in beginnings}
    except Exception as error:
        raise ModelError(f"{_kind(model)} does not run: {type(error).__name__}: {error}") from error
    return Reference(ids, logits, opening)


class Stock(NamedTuple, Generic[Habits]):
    """What a runtime knows of a model: how it may be run, and the width of its logits."""

    capabilities: Habits
    vocab_size: int


class _Known(NamedTuple):
    """What was learnt of a patched model, its layers by name."""

    modules: tuple[Any, ...]
    stock: Stock[Any]
    readable: Readable
    layers: tuple[str, ...] | None


_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, _Known]] = WeakKeyDictionary()


def take_stock(model: CausalModel, trial: Callable[[CausalModel, Reference], Habits]) -> Stock[Habits]:
    """Learn how a hosted model may be run, pack it, and set its senses.

    For a patched model that is done on a bare copy, once for all runtimes over it.

    Raises:
        ModelError: the model does not run so.
    """
    wrapped = model.wrapped
    if not wrapped.patch:
        reference = make_reference(model)
        wrapped.pack()
        return Stock(trial(model, reference), reference.vocab_size)
    known = _KNOWN.get(wrapped.module, {}).get(trial)
    now = modules_of(wrapped.module)
    if known is None or known.modules != now:
        with wrapped.probing():
            reference = make_reference(model)
            stock = Stock(trial(model, reference), reference.vocab_size)
            names = {id(module): name for name, module in wrapped.module.named_modules()}
        layers = model.readable.layers
        named = None if layers is None else tuple(names[id(layer)] for layer in layers)
        known = _Known(now, stock, model.readable._replace(layers=None), named)
        _KNOWN.setdefault(wrapped.module, {})[trial] = known
    wrapped.pack()
    found = None if known.layers is None else tuple(wrapped.module.get_submodule(name) for name in known.layers)
    model.readable = known.readable._replace(layers=found)
    return known.stock


def _kind(model: CausalModel) -> str:
    return type(model.wrapped.module).__name__


class _Comparator:
    """Compares rows with the reference."""

    def __init__(self, model: CausalModel, reference: Reference) -> None:
        self._expected = reference.logits
        self._allowed = allowed_distance(model.wrapped.module)

    def agrees(self, look: ModelOutput, *beginnings: tuple[int, int]) -> bool:
        """Return whether the rows are what follows these beginnings, (sequence, length) each."""
        expected = torch.stack([self._expected[each] for each in beginnings]).to(look.logits.device)
        return self.are_alike(look.logits, expected)

    def are_alike(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Return whether rows differ by rounding at most."""
        return distance(found, expected) <= self._allowed


class CacheCapabilities(NamedTuple):
    """How a model's own cache may be used.

    continues: whether several tokens can be read on top of it at once; if not, they are read one by one.
    shortens: whether tokens can be taken off its end. anatomy: what it consists of. both_ways: whether tokens of one
    pass see later ones, as in PaliGemma's prompts: a prompt is then one pass, and no pass can replace several.
    """

    continues: bool
    shortens: bool
    schema: CacheSchema
    both_ways: bool = False


def try_cache(model: CausalModel, reference: Reference) -> CacheCapabilities:
    """Learn how the model's own cache may be used.

    Raises:
        ModelError: the model has none, or says something else with it than without.
    """
    if model.cache_name is None:
        raise ModelError(f"{_kind(model)} takes no cache")
    try:
        return _try_cache(model, reference)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{_kind(model)} does not run on its own cache: {type(error).__name__}: {error}") from error


def _try_cache(model: CausalModel, reference: Reference) -> CacheCapabilities:
    judge, ids = _Comparator(model, reference), reference.ids
    one, other = (_read(model, ids[n : n + 1, : reference.opening], None, reference.opening) for n in (0, 1))
    if one.tree is None:
        raise ModelError(f"{_kind(model)} returns no cache")
    if not (judge.agrees(one, (0, reference.opening)) and judge.agrees(other, (1, reference.opening))):
        raise ModelError(f"{_kind(model)} gives other results when it fills its cache")
    # Copied as a whole, for what of it calls change is not known yet.
    bare = CacheSchema(one.tree, None, one.tree)
    step = _read(model, ids[:1, : reference.opening + 1], bare.copied(one.tree), 1)
    # The other sequence was read in between: what a model keeps to itself would be the other's now.
    if not judge.agrees(step, (0, reference.opening + 1)):
        if _sees_both_ways(model, judge, reference) and _repeats(model, judge, reference, step):
            return CacheCapabilities(False, False, CacheSchema(one.tree, None, step.tree), both_ways=True)
        raise ModelError(f"{_kind(model)} gives other results on its own cache")
    continues = _agrees_in_a_run(model, judge, reference, bare.copied(one.tree))
    schema = CacheSchema(one.tree, _pair(model, judge, reference, bare), step.tree)
    capabilities = CacheCapabilities(continues, False, schema)
    return capabilities._replace(shortens=_agrees_shortened(model, judge, reference, capabilities, step.tree))


def _sees_both_ways(model: CausalModel, judge: _Comparator, reference: Reference) -> bool:
    """Return whether a token's row changes with the token behind it in the same pass."""
    count = reference.opening + 1
    look = model.run(reference.ids[:1, :count], None, count, [count - 2])
    return not judge.agrees(look, (0, reference.opening))


def _repeats(model: CausalModel, judge: _Comparator, reference: Reference, step: ModelOutput) -> bool:
    """Return whether the same step gives the same row without another sequence in between."""
    ids, opening = reference.ids[:1], reference.opening
    tree = _read(model, ids[:, :opening], None, opening).tree
    return judge.are_alike(_read(model, ids[:, : opening + 1], tree, 1).logits, step.logits)


def _read(model: CausalModel, ids: torch.Tensor, tree: Any, num_new: int, num_shown: int = 1) -> ModelOutput:
    """Read the last tokens of each sequence, and show what follows the very last ones."""
    ends = range(num_new, (len(ids) + 1) * num_new, num_new)
    return model.run(ids, tree, num_new, [row for end in ends for row in range(end - num_shown, end)])


def _agrees_in_a_run(model: CausalModel, judge: _Comparator, reference: Reference, tree: Any) -> bool:
    count = reference.length - reference.opening
    if count < 2:  # too few positions to see it
        return False
    try:
        look = _read(model, reference.ids[:1], tree, count, count)
    except Exception:  # a model may refuse it in any way it likes
        return False
    return judge.agrees(look, *((0, length) for length in range(reference.opening + 1, reference.length + 1)))


def _pair(model: CausalModel, judge: _Comparator, reference: Reference, schema: CacheSchema) -> Any | None:
    """Return the tree of both sequences read side by side, or None where that gives other results, then or later."""
    try:
        look = _read(model, reference.ids[:, : reference.opening], None, reference.opening)
        step = _read(model, reference.ids[:, : reference.opening + 1], schema.copied(look.tree), 1)
    except Exception:  # a model may refuse it in any way it likes
        return None
    agrees = judge.agrees(look, (0, reference.opening), (1, reference.opening))
    return look.tree if agrees and judge.agrees(step, (0, reference.opening + 1), (1, reference.opening + 1)) else None


def _agrees_shortened(
    model: CausalModel, judge: _Comparator, reference: Reference, capabilities: CacheCapabilities, longer: Any
) -> bool:
    if not can_shorten(longer):
        return False
    share = CacheSlice(BatchedCache(longer, 1, reference.opening + 1), 0, reference.opening - 1)
    try:
        look = _read(
            model, reference.ids[:1, : reference.opening], capabilities.schema.gathered([share], share.length), 1
        )
    except Exception:  # a cache may refuse it in any way it likes
        return False
    return judge.agrees(look, (0, reference.opening))


class WholeCapabilities(NamedTuple):
    """How a model may be run without a cache.

    shows_all: whether one pass shows what follows each token; if not, each asked position is a pass of its own.
    batches: whether sequences of one length can be run side by side.
    """

    shows_all: bool
    batches: bool


def try_whole(model: CausalModel, reference: Reference) -> WholeCapabilities:
    """Learn how the model may be run without a cache."""
    judge, ids = _Comparator(model, reference), reference.ids
    lengths = range(reference.opening, reference.length + 1)
    try:
        look = model.run(ids[:1], None, reference.length, [length - 1 for length in lengths], remembers=False)
        shows_all = judge.agrees(look, *((0, length) for length in lengths))
    except Exception:  # a model may refuse it in any way it likes
        shows_all = False
    try:
        batches = judge.agrees(
            model.next_row(ids[:, : reference.opening + 1]), (0, reference.opening + 1), (1, reference.opening + 1)
        )
    except Exception:
        batches = False
    return WholeCapabilities(shows_all, batches)
