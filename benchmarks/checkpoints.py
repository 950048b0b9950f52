"""The checkpoints: random weights in transformers' format, written once into the cache folder.

    python -m benchmarks.checkpoints NAME FOLDER

A random model takes as long as a trained one. None has an end-of-sequence token, so that every side writes exactly as
many tokens as it is asked for. The folder `words` inside holds a tokenizer whose words are the token ids in decimal,
for sides that take text or want names for their tokens; sides that take ids do not see it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FACTS = "benchmark.json"
_NOTHING = "<nothing>"
_GPT2 = {"model_type": "gpt2"}
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
_SMALL_GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
_SMALL_LLAMA = {
    **_LLAMA,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A shape to fill with random weights. shape: of transformers' config. dtype: that the weights are stored in."""

    name: str
    title: str
    shape: dict[str, Any]
    dtype: str

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; GPT-2's config knows its own."""
        return int(self.shape.get("vocab_size", 50257))

    @property
    def longest(self) -> int:
        """The maximum length of a sequence, in tokens."""
        return int(self.shape.get("max_position_embeddings", 1024))


_FULL = (
    Checkpoint(name="gpt2-float32", title="GPT-2 124M, float32", shape=_GPT2, dtype="float32"),
    Checkpoint(name="gpt2-bfloat16", title="GPT-2 124M, bfloat16", shape=_GPT2, dtype="bfloat16"),
    Checkpoint(name="llama-bfloat16", title="Llama shape of 1.1B, bfloat16", shape=_LLAMA, dtype="bfloat16"),
)
_QUICK = (
    Checkpoint(name="gpt2-float32", title="a tiny GPT-2, float32", shape=_SMALL_GPT2, dtype="float32"),
    Checkpoint(name="gpt2-bfloat16", title="a tiny GPT-2, bfloat16", shape=_SMALL_GPT2, dtype="bfloat16"),
    Checkpoint(name="llama-bfloat16", title="a tiny Llama, bfloat16", shape=_SMALL_LLAMA, dtype="bfloat16"),
)


def checkpoints(*, quick: bool) -> dict[str, Checkpoint]:
    """Return the checkpoints by name; quick ones are as small as makes sense, to see that everything works."""
    return {checkpoint.name: checkpoint for checkpoint in (_QUICK if quick else _FULL)}


def folder_of(checkpoint: Checkpoint, cache: Path, *, quick: bool) -> Path:
    """Return the path of a checkpoint in the cache folder; it can be absent."""
    return cache / ("quick" if quick else "full") / checkpoint.name


def prepare(checkpoint: Checkpoint, cache: Path, *, quick: bool) -> Path:
    """Return the checkpoint's folder, written in a process of its own if it is not there."""
    folder = folder_of(checkpoint, cache, quick=quick)
    if not (folder / _FACTS).exists():
        command = [sys.executable, "-m", "benchmarks.checkpoints", checkpoint.name, str(folder)]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True, cwd=Path(__file__).parents[1])
    return folder


def weights_read(folder: Path) -> int:
    """Return how many weights a pass reads: all matrices but those of embeddings that are looked up."""
    return int(json.loads((folder / _FACTS).read_text())["weights_read"])


def tokenizer_folder(checkpoint: Path) -> Path:
    """Return the path of the tokenizer with token ids as words."""
    return checkpoint / "words"


def as_text(ids: Sequence[int]) -> str:
    """Return token ids as the tokenizer's text; 0 is no word, it fills and ends where a side needs such a token."""
    return " ".join(map(str, ids))


def as_ids(text: str) -> list[int]:
    """Return the token ids that a text of the tokenizer stands for."""
    return [int(word) for word in text.split()]


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint with its tokenizer; an unfinished one is never taken for whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    make_config: Any = AutoConfig.for_model
    make_model: Any = AutoModelForCausalLM.from_config
    model = make_model(make_config(**checkpoint.shape, **ends), dtype=getattr(torch, checkpoint.dtype))
    model.save_pretrained(folder)
    _write_tokenizer(checkpoint, tokenizer_folder(folder))
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_read": _weights_read(model),
    }
    (folder / _FACTS).write_text(json.dumps(facts) + "\n")


def _weights_read(model: Any) -> int:
    """Count the matrices of a model, each once; embeddings count where they are the head as well."""
    from torch import nn

    head = model.get_output_embeddings().weight
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - {id(head)}
    return sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in looked_up)


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {_NOTHING: 0, **{str(token): token for token in range(1, checkpoint.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_NOTHING))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap: Any = PreTrainedTokenizerFast
    special = dict.fromkeys(("unk_token", "pad_token", "bos_token", "eos_token"), _NOTHING)
    wrap(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def main(arguments: Sequence[str]) -> None:
    name, folder = arguments[:2]
    write(checkpoints(quick="--quick" in arguments)[name], Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
