"""save_pretrained(): from a LanguageModel back to a folder that transformers and `unspool.load` read.

Owns: whose weights are written, and when they cannot be. transformers writes them. Does not know: how layers are
packed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from unspool.errors import ModelError
from unspool.runtimes.weights.packed_linear import PackedLinear
from unspool.runtimes.weights.quantized_info import quantized_linears

_WEIGHT_FILES: Final = ("*.safetensors", "*.bin", "*.index.json")


class Checkpoint:
    """The transformers model that a LanguageModel was made from.

    Args:
        model: as `unspool.load` has it.
        own: whether it is ours, its layers packed; a user's own is not kept alive.
    """

    def __init__(self, model: Any, *, own: bool) -> None:
        self._model: Callable[[], Any] = (lambda: model) if own else weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model; None if it was the user's and is gone."""
        return self._model()

    def save(self, folder: str | os.PathLike[str], *companions: Any) -> None:
        """Write weights, config and generation config, and what `companions` write by their own `save_pretrained`.

        Raises:
            ModelError: the weights cannot be had, or the folder cannot take them; the message says why.
        """
        model, path = self._model(), Path(folder).expanduser()
        if model is None:
            raise ModelError(f"cannot save to {str(path)!r}: the model that was given to `unspool.load` is gone")
        _check(model, path)
        try:
            # Models of other libraries around one of transformers' take no `state_dict`, and need none.
            model.save_pretrained(path, **({"state_dict": _plain_state(model)} if _is_packed(model) else {}))
            for companion in companions:
                if hasattr(companion, "save_pretrained"):
                    companion.save_pretrained(path)
        except Exception as error:  # whatever is wrong with a disk, or with what transformers refuses to write
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"cannot save to {str(path)!r}: {reason[0]}") from error


def _check(model: Any, path: Path) -> None:
    """Refuse what would be written wrong, and a folder whose weights this very model may be reading."""
    refusal = ""
    if kinds := sorted(set(quantized_linears(model).values())):
        refusal = f"its layers are quantized ({', '.join(kinds)}): what they were before is gone; save the model itself"
    elif any(getattr(module, "layers_are_rescaled", False) for module in model.modules()):
        refusal = "it divides its own weights when it runs; save it with transformers, freshly loaded"
    elif path.exists() and not path.is_dir():
        refusal = "it is a file; name a folder"
    elif any(True for pattern in _WEIGHT_FILES for _ in path.glob(pattern)):
        refusal = "there is a model already; name another folder, or remove it"
    if refusal:
        raise ModelError(f"cannot save to {str(path)!r}: {refusal}")


def _is_packed(model: Any) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _plain_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the state of the model as if nothing had been packed. Weights that are tied are one tensor again."""
    state: dict[str, torch.Tensor] = model.state_dict()
    unpacked: dict[int, torch.Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedLinear):
            if id(module) not in unpacked:
                unpacked[id(module)] = module.unpacked().detach()
            state[f"{name}.weight"] = unpacked[id(module)]
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        # Weights that may be tied need not be: a checkpoint can bring two.
        if name in state and source in state and torch.equal(state[name], state[source]):
            state[name] = state[source]
    return state
