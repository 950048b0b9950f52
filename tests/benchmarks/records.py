"""A small record, as a run would leave it, with figures that can be worked out by hand."""

from __future__ import annotations

from typing import Any

MIB = 2**20


def entry(label: str, side: str, seconds: list[float], **further: Any) -> dict[str, Any]:
    """Return what an entry of one prompt and 10 new tokens leaves; its passes read 1e9 bytes each."""
    runs = len(seconds)
    return {
        "label": label,
        "side": side,
        "status": "ok",
        "reason": "",
        "info": f"{label} | as it likes",
        "load_seconds": 1.0,
        "loaded_bytes": 100 * MIB,
        "peak_bytes": 150 * MIB,
        "prompts": 1,
        "new_tokens": 10,
        "load": {},
        "options": {},
        "bytes_per_pass": 1e9,
        "seconds": seconds,
        "first_seconds": [None] * runs,
        "passes": [10] * runs,
        "parts": [{"forward": 0.9 * value, "vocabulary": 0.02, "bookkeeping": 0.01, "steps": 10} for value in seconds],
        "differences": None,
        **further,
    }


def case(name: str, *entries: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": f"the case {name}",
        "checkpoint": name.partition("/")[0],
        "kind": "peers",
        "measures": ["whole"],
        "note": "",
        "same_tokens": True,
        "bandwidths": [2e10, 2e10],
        "entries": list(entries),
        **further,
    }


def record() -> dict[str, Any]:
    """Return a run in which transformers is half as fast, CTranslate2 wins, and llama.cpp is not there."""
    ours = entry("unspool", "unspool", [1.0, 2.0, 1.0])
    return {
        "schema": 1,
        "date": "2026-11-21",
        "quick": False,
        "finished": True,
        "seconds": 12.0,
        "machine": {
            "cpu": "A Machine",
            "vector": "AVX2",
            "cores": 2,
            "threads": 2,
            "memory_gib": 16.0,
            "bandwidth": {"best": 2.5e10, "median": 2e10},
        },
        "versions": {"unspool": "0.1.0", "torch": "2.13.0"},
        "checkpoints": {"gpt2-float32": {"title": "a GPT-2", "weights_read": 250_000_000}},
        "cases": [
            case(
                "gpt2-float32/greedy",
                ours,
                entry("transformers", "transformers", [2.0, 4.0, 2.4], differences=[]),
                entry("ctranslate2 float32", "ctranslate2", [0.8, 1.0, 0.5], differences=[[0, 0, 3]]),
                entry("llama.cpp bf16", "llama.cpp", [], status="unavailable", reason="llama_cpp is not installed"),
                note="a word of warning",
            ),
            case(
                "gpt2-float32/long-prompt",
                entry("unspool", "unspool", [1.9, 1.9], first_seconds=[1.0, 1.0]),
                entry("transformers", "transformers", [4.8, 4.8], first_seconds=[3.0, 3.0], differences=[]),
                measures=["first", "rest"],
            ),
            case(
                "gpt2-float32/beam-step",
                entry("greedy", "unspool", [1.0]),
                entry("5 beams", "unspool", [1.3]),
                kind="cost",
            ),
            case("gpt2-float32/step-parts", entry("1 request", "unspool", [0.5]), kind="cost"),
        ],
    }
