"""Models of peft (LoRA and other adapters): the transformers model inside, and the adapters that it cannot run.

Recognizes peft by the names of its classes, without importing it.
"""

from __future__ import annotations

from typing import Any, Final

from unspool.errors import ModelError
from unspool.runtimes.wrap.compiled import uncompiled

_OUTSIDE: Final = {"XLORA", "POLY"}
"""Types of adapter that need an argument or a pass of peft's own in every call."""


def base_of(model: Any) -> Any:
    """Return the transformers model inside a compiled model or one of peft; any other model unchanged.

    A model of peft keeps the adapters in its layers.

    Raises:
        ModelError: if an active adapter acts outside of the model's layers.
    """
    model = uncompiled(model)
    if not _is_of_peft(model):
        # During peft's own `generate`, the inner model can prepare its inputs through the outer one.
        around = getattr(getattr(model, "__dict__", {}).get("prepare_inputs_for_generation"), "__self__", model)
        if around is not model and _is_of_peft(around):
            base_of(around)
        return model
    if not getattr(model, "_adapters_disabled", False):
        for name in model.active_adapters:
            _check(name, model.peft_config[name])
    return model.get_base_model()


def _is_of_peft(model: Any) -> bool:
    kinds = type(model).__mro__
    return any(kind.__module__.partition(".")[0] == "peft" for kind in kinds) and hasattr(model, "get_base_model")


def _check(name: str, config: Any) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning:
        reason = "adds tokens or keys in front of the prompt"
    elif kind in _OUTSIDE:
        reason = "needs more of each call than the model's layers"
    elif getattr(config, "alora_invocation_tokens", None):
        reason = "begins to act at a token of the prompt"
    else:
        return
    raise ModelError(
        f"the adapter {name!r} ({kind}) {reason}: not supported; adapters inside of layers are (LoRA and its like), "
        "and `merge_and_unload()` gives a plain model if peft can merge"
    )
