"""save_pretrained(): writes a LanguageModel to a folder that transformers and `unspool.load` can read.

Owns: the saved model, and the reasons to refuse. Does not know: how layers are packed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from unspool.errors import ModelError
from unspool.runtimes.quantized.info import quantized_linears
from unspool.runtimes.weights.packed_linear import PackedLinear

_WEIGHT_FILES: Final = ("*.safetensors", "*.bin", "*.index.json")


class Checkpoint:
    """The transformers model of a LanguageModel, as a checkpoint that can be saved.

    Args:
        model: as `unspool.load` loaded or received it.
        owns_model: True if `unspool.load` loaded it; False for the user's model, which is not kept alive.
    """

    def __init__(self, model: Any, *, owns_model: bool) -> None:
        self._model: Callable[[], Any] = (lambda: model) if owns_model else weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model; None if it was the user's and is gone."""
        return self._model()

    def save(self, folder: str | os.PathLike[str], *companions: Any) -> None:
        """Write weights, config and generation config.

        Args:
            folder: is created if it is missing.
            companions: tokenizer and processor; each is written by its own `save_pretrained`, if it has one.

        Raises:
            ModelError: if the weights cannot be saved or the folder cannot be written; the message says why.
        """
        model, path = self._model(), Path(folder).expanduser()
        if model is None:
            raise ModelError(f"cannot save to {str(path)!r}: the model that was given to `unspool.load` is gone")
        _check(model, path)
        try:
            # Wrappers of other libraries accept no `state_dict`, and contain no packed layers.
            model.save_pretrained(path, **({"state_dict": _plain_state(model)} if _is_packed(model) else {}))
            for companion in companions:
                if hasattr(companion, "save_pretrained"):
                    companion.save_pretrained(path)
        except Exception as error:  # any error of the disk, or of transformers
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"cannot save to {str(path)!r}: {reason[0]}") from error


def _check(model: Any, path: Path) -> None:
    """Raise ModelError if the saved weights would be wrong, or if the folder has weights, which can be in use."""
    refusal = ""
    if kinds := sorted(set(quantized_linears(model).values())):
        refusal = f"its layers are quantized ({', '.join(kinds)}); save the original model instead"
    elif any(getattr(module, "layers_are_rescaled", False) for module in model.modules()):
        refusal = "it rescales its own weights when it runs; load it again with transformers and save that"
    elif path.exists() and not path.is_dir():
        refusal = "it is a file; name a folder"
    elif any(True for pattern in _WEIGHT_FILES for _ in path.glob(pattern)):
        refusal = "it already has a model; name another folder, or remove the model"
    if refusal:
        raise ModelError(f"cannot save to {str(path)!r}: {refusal}")


def _is_packed(model: Any) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _plain_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the state dict with unpacked weights. Tied weights are one tensor again."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    # Once per weight: that of tied embeddings is computed.
    plain = {key: tensor.detach() for key, tensor in {id(each): each for each in state.values()}.items()}
    state |= {name: plain[id(tensor)] for name, tensor in state.items()}
    unpacked: dict[int, torch.Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedLinear):
            if id(module) not in unpacked:
                unpacked[id(module)] = module.unpacked().detach()
            state[f"{name}.weight"] = unpacked[id(module)]
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        # A checkpoint can have two different weights, even if the config allows tied ones.
        if name in state and source in state and torch.equal(state[name], state[source]):
            state[name] = state[source]
    return state
