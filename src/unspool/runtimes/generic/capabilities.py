"""Probes of how a model can be called: on its own cache or without one, several tokens or sequences at a time.

The reference is one whole forward per position, as in the first step of transformers' `generate`.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSchema, CacheSlice, can_shorten
from unspool.runtimes.generic.model import CausalModel, ModelOutput
from unspool.runtimes.model_info import max_positions
from unspool.runtimes.wrap.model_copy import modules_of
from unspool.runtimes.wrap.probe import Readable, agrees, failure, probe_tokens

_OPENING, _LENGTH = 3, 6
"""Tokens of the first call of a probe, and of all its calls."""


class Capabilities(NamedTuple):
    """How a model can be called.

    batches: True if sequences of one length can share a call.
    schema: layout of the model's own cache; None to read the whole sequence in every call.
    continues: True if several tokens can be read at once on top of the cache; else they are read one by one.
    shortens: True if tokens can be removed from the end of the cache.
    both_ways: True if tokens of a call see later ones, as in PaliGemma's prompts. A prompt is then one call, and no
        call can replace several.
    shows_all: True if one call shows the next-token logits of every position; else each position takes its own call.
    """

    batches: bool
    schema: CacheSchema | None = None
    continues: bool = True
    shortens: bool = False
    both_ways: bool = False
    shows_all: bool = True


class Learned(NamedTuple):
    """The result of the probes: how to call the model, and the width of its logits."""

    capabilities: Capabilities
    vocab_size: int


class _Known(NamedTuple):
    """The result for a patched model, with its layers by name."""

    modules: tuple[Any, ...]
    learned: Learned
    readable: Readable
    layers: tuple[str, ...] | None


_KNOWN: WeakKeyDictionary[nn.Module, dict[bool, _Known]] = WeakKeyDictionary()


def learn(model: CausalModel, *, use_cache: bool) -> Learned:
    """Probe a wrapped model, pack it, and set `model.readable`.

    A patched model is probed on a copy without its patches, once for all runtimes over it.

    Args:
        model: the model.
        use_cache: True to call it on its own cache; False to read the whole sequence in every call.

    Raises:
        ModelError: if the model does not run so.
    """
    wrapped = model.wrapped
    if not wrapped.patch:
        return _probe(model, use_cache=use_cache)
    known = _KNOWN.get(wrapped.module, {}).get(use_cache)
    modules = modules_of(wrapped.module)
    if known is None or known.modules != modules:
        with wrapped.probing():
            learned = _probe(model, use_cache=use_cache)
            names = {id(module): name for name, module in wrapped.module.named_modules()}
        layers = model.readable.layers
        named = None if layers is None else tuple(names[id(layer)] for layer in layers)
        known = _Known(modules, learned, model.readable._replace(layers=None), named)
        _KNOWN.setdefault(wrapped.module, {})[use_cache] = known
    found = None if known.layers is None else tuple(wrapped.module.get_submodule(name) for name in known.layers)
    model.readable = known.readable._replace(layers=found)
    return known.learned


def _probe(model: CausalModel, *, use_cache: bool) -> Learned:
    reference = make_reference(model)
    model.wrapped.pack()
    probe = _CacheProbe(model, reference) if use_cache else _WholeProbe(model, reference)
    return Learned(probe.capabilities(), reference.vocab_size)


class Reference(NamedTuple):
    """The model's own logits for two short sequences.

    ids: [2, length]. logits: [vocab] each, by (sequence, number of its first tokens that were read). opening: number of
    tokens of the first call.
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
    """Compute the reference, one sequence and one length at a time, and set `model.readable`.

    Raises:
        ModelError: if the model does not run.
    """
    limit = max_positions(model.wrapped.module)
    length = _LENGTH if limit is None else max(2, min(_LENGTH, limit))
    opening = min(_OPENING, length - 1)
    first = probe_tokens(model.wrapped.module, length, _LENGTH + 2)
    ids = torch.tensor([first, first[::-1]], device=model.wrapped.device)
    beginnings = [(0, count) for count in range(opening, length + 1)] + [(1, opening), (1, opening + 1)]
    try:
        model.learn(first)
        logits = {(n, count): model.next_row(ids[n : n + 1, :count]).logits[0] for n, count in beginnings}
    except Exception as error:
        raise ModelError(failure(model.wrapped.module, "", error)) from error
    return Reference(ids, logits, opening)


class _Probe:
    """Calls the model in one way, and compares the rows with the reference."""

    def __init__(self, model: CausalModel, reference: Reference) -> None:
        self._model, self._reference = model, reference
        self._module = model.wrapped.module
        self._ids, self._opening = reference.ids, reference.opening

    def _agrees(self, output: ModelOutput, *beginnings: tuple[int, int]) -> bool:
        """Return True if the rows are the logits after these beginnings, (sequence, length) each."""
        expected = torch.stack([self._reference.logits[each] for each in beginnings])
        return agrees(self._module, output.logits, expected)

    def _lengths(self, first: int) -> list[tuple[int, int]]:
        """Return the beginnings of the first sequence with at least `first` tokens."""
        return [(0, length) for length in range(first, self._reference.length + 1)]


class _WholeProbe(_Probe):
    """Reads whole sequences, without a cache."""

    def capabilities(self) -> Capabilities:
        return Capabilities(batches=self._batches(), shows_all=self._shows_all())

    def _shows_all(self) -> bool:
        beginnings = self._lengths(self._opening)
        keep = [length - 1 for _, length in beginnings]
        try:
            output = self._model.run(self._ids[:1], None, self._reference.length, keep, remembers=False)
        except Exception:  # a model can refuse the call with any error
            return False
        return self._agrees(output, *beginnings)

    def _batches(self) -> bool:
        length = self._opening + 1
        try:
            output = self._model.next_row(self._ids[:, :length])
        except Exception:  # a model can refuse the call with any error
            return False
        return self._agrees(output, (0, length), (1, length))


class _CacheProbe(_Probe):
    """Reads on top of the model's own cache."""

    def capabilities(self) -> Capabilities:
        """Learn how the cache can be used.

        Raises:
            ModelError: if the model lacks a cache, or gives other results with it.
        """
        name = type(self._module).__name__
        if self._model.cache_name is None:
            raise ModelError(f"{name} takes no cache")
        try:
            found = self._try()
        except Exception as error:
            raise ModelError(failure(self._module, "its own cache", error)) from error
        if isinstance(found, str):
            raise ModelError(f"{name} {found}")
        return found

    def _try(self) -> Capabilities | str:
        """Return the capabilities, or why the cache cannot be used."""
        opening, ids = self._opening, self._ids
        one, other = (self._read(ids[n : n + 1, :opening], None, opening) for n in (0, 1))
        if one.tree is None:
            return "returns no cache"
        if not (self._agrees(one, (0, opening)) and self._agrees(other, (1, opening))):
            return "gives other results when it fills its cache"
        # Copy all of the tree: the parts that a call changes are not known yet.
        bare = CacheSchema(one.tree, None, one.tree)
        step = self._read(ids[:1, : opening + 1], bare.copied(one.tree), 1)
        # The other sequence was read in between: state that the model keeps outside of its cache would show here.
        if not self._agrees(step, (0, opening + 1)):
            if self._sees_both_ways() and self._repeats(step):
                schema = CacheSchema(one.tree, None, step.tree)
                return Capabilities(batches=False, schema=schema, continues=False, both_ways=True)
            return "gives other results on its own cache"
        continues = self._continues(bare.copied(one.tree))
        schema = CacheSchema(one.tree, self._stacked(bare), step.tree)
        shortens = self._shortens(schema, step.tree)
        return Capabilities(batches=schema.can_stack, schema=schema, continues=continues, shortens=shortens)

    def _read(self, ids: torch.Tensor, tree: Any, num_new: int, num_shown: int = 1) -> ModelOutput:
        """Read the last `num_new` tokens of each sequence; return the rows after the last `num_shown`."""
        ends = range(num_new, (len(ids) + 1) * num_new, num_new)
        return self._model.run(ids, tree, num_new, [row for end in ends for row in range(end - num_shown, end)])

    def _sees_both_ways(self) -> bool:
        """Return True if a token's row changes with the next token of the same call."""
        count = self._opening + 1
        output = self._model.run(self._ids[:1, :count], None, count, [count - 2])
        return not self._agrees(output, (0, self._opening))

    def _repeats(self, step: ModelOutput) -> bool:
        """Return True if the same step gives the same row without another sequence in between."""
        ids, opening = self._ids[:1], self._opening
        tree = self._read(ids[:, :opening], None, opening).tree
        return agrees(self._module, self._read(ids[:, : opening + 1], tree, 1).logits, step.logits)

    def _continues(self, tree: Any) -> bool:
        count = self._reference.length - self._opening
        if count < 2:  # too few tokens to tell
            return False
        try:
            output = self._read(self._ids[:1], tree, count, count)
        except Exception:  # a model can refuse the call with any error
            return False
        return self._agrees(output, *self._lengths(self._opening + 1))

    def _stacked(self, schema: CacheSchema) -> Any | None:
        """Return the tree of both sequences read side by side; None if this call or the next gives other results."""
        opening, ids = self._opening, self._ids
        try:
            output = self._read(ids[:, :opening], None, opening)
            step = self._read(ids[:, : opening + 1], schema.copied(output.tree), 1)
        except Exception:  # a model can refuse the call with any error
            return None
        is_right = self._agrees(output, (0, opening), (1, opening))
        return output.tree if is_right and self._agrees(step, (0, opening + 1), (1, opening + 1)) else None

    def _shortens(self, schema: CacheSchema, longer: Any) -> bool:
        if not can_shorten(longer):
            return False
        opening = self._opening
        part = CacheSlice(BatchedCache(longer, 1, opening + 1), 0, opening - 1)
        try:
            output = self._read(self._ids[:1, :opening], schema.gathered([part], part.length), 1)
        except Exception:  # a cache can refuse to be cut with any error
            return False
        return self._agrees(output, (0, opening))
