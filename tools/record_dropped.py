"""Record outputs of transformers 4 with the strategies that transformers 5 dropped: contrastive, group beams, DoLa.

Run with transformers 4.48.3 and the torch of this project, in an environment of its own:

    python tools/record_dropped.py tests/oracle/dropped.json

The models are those of tests/oracle/models. Cases are drawn from a fixed seed, one prompt each, since transformers
picks DoLa's layer for a whole batch.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

MODELS = Path(__file__).parent.parent / "tests" / "oracle" / "models"
COUNTS = {"contrastive": 24, "diverse_beam": 48, "dola": 36}


def contrastive(draw: random.Random) -> dict[str, Any]:
    """Return options of a contrastive search."""
    return {"penalty_alpha": draw.choice([0.2, 0.4, 0.6, 0.8]), "top_k": draw.randint(2, 6)} | penalties(draw)


def diverse_beam(draw: random.Random) -> dict[str, Any]:
    """Return options of a diverse beam search."""
    groups, size = draw.randint(2, 4), draw.randint(1, 3)
    return {
        "num_beams": groups * size,
        "num_beam_groups": groups,
        "diversity_penalty": draw.choice([0.3, 0.5, 1.0, 2.0]),
        "length_penalty": draw.choice([0.0, 0.7, 1.0, 2.0]),
        "early_stopping": draw.choice([True, False, False, "never"]),
        "num_return_sequences": draw.randint(1, groups * size),
    } | penalties(draw)


def dola(draw: random.Random) -> dict[str, Any]:
    """Return options of a greedy search with contrasted layers."""
    return {"dola_layers": draw.choice(["low", "high", [0], [1], [0, 1]])} | penalties(draw)


def penalties(draw: random.Random) -> dict[str, Any]:
    """Return some processors' options, or none."""
    return draw.choice([{}, {}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 5}])


def record(model: Any, prompt: list[int], options: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs after the prompt, and their scores if there are any."""
    beams = "num_beams" in options
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=beams,
        **options,
    )
    found: dict[str, Any] = {"sequences": [row[len(prompt) :] for row in out.sequences.tolist()]}
    if beams:
        found["sequences_scores"] = [round(score, 6) for score in out.sequences_scores.tolist()]
    return found


def main(path: str) -> None:
    """Write the cases, one per line."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cases = []
    for name in ("gpt2", "llama", "gpt_neox"):
        model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name).eval()
        eos = model.generation_config.eos_token_id
        for strategy, count in COUNTS.items():
            draw = random.Random(f"{name} {strategy}")
            for _ in range(count // 3):
                words = [token for token in range(model.config.vocab_size) if token != eos]
                prompt = [draw.choice(words) for _ in range(draw.randint(2, 9))]
                options = globals()[strategy](draw) | {"max_new_tokens": draw.randint(6, 16)}
                found = record(model, prompt, options)
                cases.append({"model": name, "strategy": strategy, "prompt": prompt, "options": options, **found})
    Path(path).write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
