"""CPU time of small calls: tiny models, on which the cost of a step is Python and PyTorch's calls, not arithmetic.

python -m benchmarks.small_calls                # a minute
python -m benchmarks.small_calls --only t5 mamba --rounds 40

Prints, per model, how many times the CPU time of `model.generate` the same call takes with `unspool.generate`: a token
of a warm call with one row and with four beams, and the first call on a model. Both run in this process by turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers

import unspool

_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    **_IDS,
}
_ENCODER_DECODER = {
    "vocab_size": 1000,
    "d_model": 32,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
    **_IDS,
}
_BART_LAYERS = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=1000, n_embd=32, n_layer=2, n_head=4, **_IDS)
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(max_position_embeddings=512, **_BART_LAYERS, **_ENCODER_DECODER)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_kv=8, d_ff=64, num_layers=2, num_heads=4, **_ENCODER_DECODER)
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=1000, hidden_size=32, num_hidden_layers=2, state_size=8, **_IDS)
    ),
}

TOKENS, FIRST_TOKENS = 64, 20
"""New tokens of a warm call, and of the first call on a model (transformers' default)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="only these models")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of calls per figure (default: 20)")
    options = parser.parse_args(arguments)
    print(f"{'model':8}{'one row':>22}{'four beams':>22}{'first call':>22}")
    with _one_quiet_thread():
        for name in options.only:
            figures = [_figure(_warm(name, num_beams=beams), options.rounds, TOKENS, "us") for beams in (1, 4)] + [
                _figure(partial(_first, name), options.rounds, 1000, "ms")
            ]
            print(f"{name:8}" + "".join(f"{each:>22}" for each in figures), flush=True)


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """Let PyTorch use one thread and transformers log errors only, and restore both afterwards."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)


def _figure(pair: Callable[[], tuple[float, float]], rounds: int, parts: int, unit: str) -> str:
    """Return the ratio of the medians, and the medians."""
    pairs = [pair() for _ in range(rounds)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    scale = {"us": 1e6 / parts, "ms": 1e3}[unit]
    return f"{ours / theirs:.2f} ({ours * scale:.0f}/{theirs * scale:.0f} {unit})"


def _warm(name: str, **options: Any) -> Callable[[], tuple[float, float]]:
    """Return a function that times one warm call on both sides."""
    model, prompt = _fresh(name), torch.arange(5, 13)[None]
    call = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, **options}
    for _ in range(4):
        ours, theirs = unspool.generate(model, prompt, **call), model.generate(prompt, **call)
        assert ours.equal(theirs), f"{name}: other tokens than transformers"

    def pair() -> tuple[float, float]:
        return (
            _cpu_time(lambda: unspool.generate(model, prompt, **call)),
            _cpu_time(lambda: model.generate(prompt, **call)),
        )

    return pair


def _first(name: str) -> tuple[float, float]:
    """Time the first call on a model, on both sides."""
    prompt = torch.arange(5, 13)[None]
    call = {"max_new_tokens": FIRST_TOKENS, "min_new_tokens": FIRST_TOKENS}
    ours, theirs = _fresh(name), _fresh(name)
    return (
        _cpu_time(lambda: unspool.generate(ours, prompt, **call)),
        _cpu_time(lambda: theirs.generate(prompt, **call)),
    )


def _fresh(name: str) -> Any:
    """Return a random model, the same each time."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def _cpu_time(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
