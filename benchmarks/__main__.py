"""Greedy decoding of a GPT-2-sized model with random weights: Unspool and transformers' generate, in turn.

    python -m benchmarks                 # about five minutes
    python -m benchmarks --quick         # a smaller model, to see that it works
    python -m benchmarks --json out.json

Each measurement is a pair in the same minute, so that a machine that slows down slows both; quoted is the median of the
ratios. The weights are random, so the text means nothing; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import unspool
from unspool import LanguageModel

MIXED_LENGTHS = (3, 5, 8, 12, 17, 23, 30, 38, 47, 57, 68, 80, 93, 107, 122, 138)


def build_model(quick: bool) -> GPT2LMHeadModel:
    """Return GPT-2 (124M parameters), or something a tenth of its size."""
    torch.manual_seed(0)
    sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4} if quick else {}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    model.generation_config.pad_token_id = 0
    return model


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 50_000, (length,), generator=generator).tolist() for length in lengths]


def run_unspool(lm: LanguageModel, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    results = lm.generate(prompts, max_new_tokens=tokens, ignore_eos=True, progress=False)
    return [list(result.completions[0].token_ids) for result in results]


def run_transformers(model: GPT2LMHeadModel, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        rows = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return [row[width:].tolist() for row in rows]


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any], runs: int) -> list[tuple[float, float]]:
    """Time both in turn, after one warm-up of each."""
    ours()
    theirs()
    return [(seconds(ours), seconds(theirs)) for _ in range(runs)]


def parts_per_step(lm: LanguageModel, requests: int, tokens: int) -> dict[str, float]:
    """Return milliseconds a decode step spends in each part, prompts of one token, after a warm-up."""
    prompts = [[7 + index] for index in range(requests)]
    run_unspool(lm, prompts, 4)
    timing = lm.engine.timing
    before = (timing.forward, timing.vocabulary, timing.bookkeeping, timing.steps)
    run_unspool(lm, prompts, tokens)
    after = (timing.forward, timing.vocabulary, timing.bookkeeping, timing.steps)
    forward, vocabulary, bookkeeping, steps = (b - a for a, b in zip(before, after, strict=True))
    names = ("forward", "vocabulary", "bookkeeping")
    return {name: 1000 * part / steps for name, part in zip(names, (forward, vocabulary, bookkeeping), strict=True)}


def measure(quick: bool, runs: int, tokens: int) -> dict[str, Any]:
    model = build_model(quick)
    lm = unspool.load(model)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
        "model": f"GPT-2 architecture, {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, float32",
        "path": lm.info.path,
        "throughput": {},
        "step": {},
    }
    for name, lengths in {"greedy, 1 prompt of 32": (32,), "greedy, 16 prompts of 3 to 138": MIXED_LENGTHS}.items():
        prompts = prompts_of(lengths)
        found = pairs(
            lambda prompts=prompts: run_unspool(lm, prompts, tokens),
            lambda prompts=prompts: run_transformers(model, prompts, tokens),
            runs,
        )
        written = tokens * len(prompts)
        ratios = [theirs / ours for ours, theirs in found]
        report["throughput"][name] = {
            "unspool_tokens_per_second": written / statistics.median(ours for ours, _ in found),
            "transformers_tokens_per_second": written / statistics.median(theirs for _, theirs in found),
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    for requests in (1, 16, 64):
        report["step"][requests] = parts_per_step(lm, requests, max(8, tokens // 2))
    return report


def show(report: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{report['model']}\n{report['machine']}\n{report['path']}\n", highlight=False)
    table = Table("", "unspool tok/s", "transformers tok/s", "ratio (min to max)", title="Throughput")
    for name, row in report["throughput"].items():
        table.add_row(
            name,
            f"{row['unspool_tokens_per_second']:.1f}",
            f"{row['transformers_tokens_per_second']:.1f}",
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
        )
    console.print(table)
    table = Table("requests", "forward ms", "vocabulary ms", "bookkeeping ms", title="One decode step")
    for requests, parts in report["step"].items():
        table.add_row(str(requests), *(f"{parts[name]:.2f}" for name in ("forward", "vocabulary", "bookkeeping")))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of a tenth of the size")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs (default 5)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a prompt (default 64)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    report = measure(options.quick, options.runs, options.tokens)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
