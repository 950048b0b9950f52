"""Probes of how a model can be called: on its own cache or without one, several tokens or sequences at a time.

The reference is a whole forward without a cache, as in the first step of transformers' `generate`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSchema, CacheSlice, Tree, can_shorten, cloned
from unspool.runtimes.generic.model import CausalModel, ModelOutput
from unspool.runtimes.model_info import max_positions
from unspool.runtimes.wrap.model_copy import modules_of
from unspool.runtimes.wrap.probe import Readable, allowed_distance, distance, failure, probe_tokens

_OPENING, _LENGTH = 3, 6
"""Tokens of the first call of a probe, and of all its calls."""

_OTHER_FILL = "gives other results when it fills its cache"


class Capabilities(NamedTuple):
    """How a model can be called.

    batches: True if sequences of one length can share a call.
    schema: layout of the model's own cache; None to read the whole sequence in every call.
    continues: True if several tokens can be read at once on top of the cache; else they are read one by one. None
        until `continues` has probed it: few requests need it on top of a recurrent state.
    shortens: True if tokens can be removed from the end of the cache.
    both_ways: True if tokens of a call see later ones, as in PaliGemma's prompts. A prompt is then one call, and no
        call can replace several.
    shows_all: True if one call shows the next-token logits of every position; else each position takes its own call.
    """

    batches: bool
    schema: CacheSchema | None = None
    continues: bool | None = True
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
    reference = make_reference(model, together=use_cache)
    model.wrapped.pack()
    probe = _CacheProbe(model, reference) if use_cache else _WholeProbe(model, reference)
    return Learned(probe.capabilities(), reference.vocab_size)


def continues(model: CausalModel) -> bool:
    """Probe whether a model can read several tokens at once on top of its cache, if `learn` has left this open."""
    with model.wrapped.probing():
        ids, opening = _probe_ids(model)
        reference = Reference(model, ids, opening, model.whole_rows(ids[:1])[None])
        return _CacheProbe(model, reference).continues()


def _probe_ids(model: CausalModel) -> tuple[torch.Tensor, int]:
    """Return the two sequences of a probe, [2, length], and the number of tokens of its first call."""
    limit = max_positions(model.wrapped.module)
    length = _LENGTH if limit is None else max(2, min(_LENGTH, limit))
    first = probe_tokens(model.wrapped.module, length, _LENGTH + 2)
    return torch.tensor([first, first[::-1]], device=model.wrapped.device), min(_OPENING, length - 1)


class Reference:
    """The model's own logits for two short sequences, computed when they are first read.

    Args:
        model: the model.
        ids: [2, length].
        opening: number of tokens of the first call of a probe.
        logits: of a whole call on the first sequence or on both, [1 or 2, rows, vocab]; see `CausalModel.learn`.
    """

    def __init__(self, model: CausalModel, ids: torch.Tensor, opening: int, logits: torch.Tensor) -> None:
        self._model, self.ids, self.opening = model, ids, opening
        self.length, self.vocab_size = ids.shape[1], logits.shape[-1]
        self._rows: dict[tuple[int, int], torch.Tensor] = {}
        self._shown: dict[tuple[int, int], torch.Tensor] = {}
        for sequence, rows in enumerate(logits):
            self._show(sequence, self.length, rows)
        if len(logits) == 1:
            self._rows[0, self.length] = logits[0, -1]

    def _show(self, sequence: int, count: int, rows: torch.Tensor) -> None:
        if len(rows) == count:
            self._shown |= {(sequence, number): row for number, row in enumerate(rows, 1)}

    def row(self, sequence: int, count: int) -> torch.Tensor:
        """Return the logits after the first tokens of a sequence, from a call on these tokens alone. --> [vocab]"""
        if (sequence, count) not in self._rows:
            rows = self._model.whole_rows(self.ids[sequence : sequence + 1, :count])
            self._show(sequence, count, rows)
            self._rows[sequence, count] = rows[-1]
        return self._rows[sequence, count]

    def shown(self, sequence: int, count: int) -> torch.Tensor:
        """Return the same row from a call on more tokens or sequences, if there was one.

        It is equal if no token sees later tokens or other sequences.
        """
        found = self._shown.get((sequence, count))
        return self.row(sequence, count) if found is None else found


def make_reference(model: CausalModel, *, together: bool) -> Reference:
    """Return the reference, and set `model.readable`.

    Args:
        model: the model.
        together: True to read both sequences in one call if the model allows it.

    Raises:
        ModelError: if the model does not run.
    """
    ids, opening = _probe_ids(model)
    if together:
        with suppress(Exception):  # a model can refuse two sequences with any error
            logits = model.learn(ids)
            if logits.shape[:2] == ids.shape:
                return Reference(model, ids, opening, logits)
    try:
        reference = Reference(model, ids, opening, model.learn(ids[:1]))
        # Now, because the layers are packed afterwards.
        reference.row(1, opening + 1)
    except Exception as error:
        raise ModelError(failure(model.wrapped.module, "", error)) from error
    return reference


class _Probe:
    """Calls the model in one way, and compares the rows with the reference."""

    def __init__(self, model: CausalModel, reference: Reference) -> None:
        self._model, self._reference = model, reference
        self._module = model.wrapped.module
        self._ids, self._opening = reference.ids, reference.opening
        self._allowed = allowed_distance(self._module)

    def _is_near(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Return True if rows differ by rounding at most. Rows: [rows, vocab]."""
        return distance(found, expected.to(found.device)) <= self._allowed

    def _agrees(self, output: ModelOutput, *beginnings: tuple[int, int]) -> bool:
        """Return True if the rows are the logits after these beginnings, (sequence, length) each."""
        expected = torch.stack([self._reference.row(*each) for each in beginnings])
        return self._is_near(output.logits, expected)

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


class _Stepped(NamedTuple):
    """The result of a step on the model's own cache. stack: the cache after it, of both sequences or the first one."""

    schema: CacheSchema
    stack: BatchedCache


class _CacheProbe(_Probe):
    """Reads on top of the model's own cache."""

    _sees_past_only = False
    """True if a row is the same in a longer call, beside another sequence.

    Rows of such calls are then the reference: they cost no call.
    """

    def _agrees(self, output: ModelOutput, *beginnings: tuple[int, int]) -> bool:
        """Do as in `_Probe`, with the rows of longer calls if `_sees_past_only`."""
        if not self._sees_past_only:
            return super()._agrees(output, *beginnings)
        shown = torch.stack([self._reference.shown(*each) for each in beginnings])
        return self._is_near(output.logits, shown)

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
        both = self._side_by_side()
        one = self._read(ids[:1, :opening], None, opening)
        if one.tree is None:
            return "returns no cache"
        self._note_order(one)
        if not self._agrees(one, (0, opening)):
            return _OTHER_FILL
        # Another call has filled a cache meanwhile: state that the model keeps outside of its cache shows in a step.
        stepped = None if both is None else self._stepped_together(one.tree, both)
        if stepped is None:
            other = self._read(ids[1:, :opening], None, opening)
            if not self._agrees(other, (1, opening)):
                return _OTHER_FILL
            # Copy all of the tree: the parts that a call changes are not known yet.
            step = self._read(ids[:1, : opening + 1], cloned(one.tree), 1)
            stepped = _Stepped(CacheSchema(one.tree, None, step.tree), BatchedCache(step.tree, 1, opening + 1))
            if not self._agrees(step, (0, opening + 1)):
                if self._sees_both_ways() and self._repeats(step):
                    return Capabilities(batches=False, schema=stepped.schema, continues=False, both_ways=True)
                return "gives other results on its own cache"
        schema = stepped.schema
        continues = None if schema.is_fixed else self._continues(cloned(one.tree))
        shortens = self._shortens(stepped)
        return Capabilities(batches=schema.can_stack, schema=schema, continues=continues, shortens=shortens)

    def continues(self) -> bool:
        """Return whether several tokens can be read at once on top of the cache of the first sequence."""
        one = self._read(self._ids[:1, : self._opening], None, self._opening)
        self._note_order(one)
        return self._continues(one.tree)

    def _note_order(self, one: ModelOutput) -> None:
        """Set `_sees_past_only` by the first call on the first sequence."""
        self._sees_past_only = self._is_near(one.logits, self._reference.shown(0, self._opening)[None])

    def _read(self, ids: torch.Tensor, tree: Any, num_new: int, num_shown: int = 1) -> ModelOutput:
        """Read the last `num_new` tokens of each sequence; return the rows after the last `num_shown`."""
        ends = range(num_new, (len(ids) + 1) * num_new, num_new)
        return self._model.run(ids, tree, num_new, [row for end in ends for row in range(end - num_shown, end)])

    def _sees_both_ways(self) -> bool:
        """Return True if a token's row changes with the next token of the same call."""
        count = self._opening + 1
        output = self._model.run(self._ids[:1, :count], None, count, [count - 2])
        return not super()._agrees(output, (0, self._opening))  # a longer call would see the next token too

    def _repeats(self, step: ModelOutput) -> bool:
        """Return True if the same step gives the same row without another sequence in between."""
        ids, opening = self._ids[:1], self._opening
        tree = self._read(ids[:, :opening], None, opening).tree
        return self._is_near(self._read(ids[:, : opening + 1], tree, 1).logits, step.logits)

    def _continues(self, tree: Any) -> bool:
        count = self._reference.length - self._opening
        if count < 2:  # too few tokens to tell
            return False
        try:
            output = self._read(self._ids[:1], tree, count, count)
        except Exception:  # a model can refuse the call with any error
            return False
        return self._agrees(output, *self._lengths(self._opening + 1))

    def _side_by_side(self) -> ModelOutput | None:
        """Read both sequences in one call, the second one first; None if the model refuses this."""
        try:
            return self._read(self._ids.flip(0)[:, : self._opening], None, self._opening)
        except Exception:  # a model can refuse the call with any error
            return None

    def _stepped_together(self, one: Tree, both: ModelOutput) -> _Stepped | None:
        """Read a token on the cache of both sequences; None if this or the call before gives other results.

        one: the tree of the first sequence alone.
        """
        count = self._opening + 1
        if not self._agrees(both, (1, count - 1), (0, count - 1)):
            return None
        try:
            step = self._read(self._ids.flip(0)[:, :count], cloned(both.tree), 1)
        except Exception:  # a model can refuse the call with any error
            return None
        if not self._agrees(step, (1, count), (0, count)):
            return None
        schema = CacheSchema(one, both.tree, step.tree)
        return _Stepped(schema, BatchedCache(step.tree, 2, count)) if schema.can_stack else None

    def _shortens(self, stepped: _Stepped) -> bool:
        stack, opening = stepped.stack, self._opening
        if not can_shorten(stack.tree):
            return False
        part = CacheSlice(stack, stack.rows - 1, opening - 1)  # the first sequence is the last row
        try:
            tree = stepped.schema.gathered([part], part.length)
            output = self._read(self._ids[:1, :opening], tree, 1)
        except Exception:  # a cache can refuse to be cut with any error
            return False
        return self._agrees(output, (0, opening))
