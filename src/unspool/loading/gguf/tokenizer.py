"""The tokenizer of a GGUF file: transformers builds it, and we add the parts that its reader leaves out.

Owns: the split of text before byte-level BPE, which a file only names ("tokenizer.ggml.pre"), and llama.cpp's defaults.
transformers uses GPT-2's split for names that it does not know, which gives other tokens.
Source: llama.cpp, src/llama-vocab.cpp, llama_vocab::impl::load and llm_tokenizer_bpe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

_PRE: Final = "tokenizer.ggml.pre"
_GPT2: Final = frozenset(
    {"default", "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "mpt", "olmo", "jais"}
)
"""GPT-2's split. A file says "default" if it does not know its own split."""
_DIGITS: Final = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Each digit is a piece of its own; otherwise GPT-2's split."""
_LLAMA3: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"})
"""A BOS token comes first unless the file disables it, and a word in the vocabulary becomes one token directly."""


class UnknownTokenizer(Exception):
    """The tokenizer of the model cannot be built; the message gives the reason."""


def write_tokenizer(path: Path, metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the tokenizer of a GGUF file into a folder.

    Args:
        path: the file.
        metadata: as in its header.
        folder: the target.

    Raises:
        UnknownTokenizer: if the file lacks one, or its way of splitting text is unknown.
    """
    if "tokenizer.ggml.model" not in metadata:
        raise UnknownTokenizer("it has no tokenizer")
    pre = metadata.get(_PRE, "default")
    defaults = {"add_bos_token": True} if pre in _LLAMA3 else {}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=str(path), **defaults)
    is_byte_level = metadata["tokenizer.ggml.model"] == "gpt2"
    stored = _with_split(json.loads(tokenizer.backend_tokenizer.to_str()), pre) if is_byte_level else None
    tokenizer.save_pretrained(folder)
    if stored is not None:
        (folder / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def _with_split(stored: dict[str, Any], pre: str) -> dict[str, Any]:
    """Return the content of tokenizer.json with this split."""
    if pre in _LLAMA3:
        stored["model"]["ignore_merges"] = True
    if pre in _DIGITS:
        digits = {"type": "Digits", "individual_digits": True}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        stored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    elif pre not in _GPT2 and stored["pre_tokenizer"]["type"] == "ByteLevel":
        raise UnknownTokenizer(f"its tokenizer splits text as {pre!r}, which transformers does not know")
    return stored
