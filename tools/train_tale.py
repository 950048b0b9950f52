"""Train the embedded model `tale` and its draft from the corpus in tools/corpus.

    python tools/train_tale.py tokenizer            # byte-level BPE, half a minute
    python tools/train_tale.py train tale           # about an hour and a half on two CPU cores; resumes
    python tools/train_tale.py train draft          # about ten minutes, taught by the finished tale model
    python tools/train_tale.py export               # half-precision weights and figures -> src/unspool/tale

Progress lives in build/tale (checkpoints, tokens, tokenizer). The learning rate is constant until the last `COOLDOWN`
of the passes and then falls linearly to zero, so a resumed run may change `--passes` while it has not begun to cool.

Source of the optimizer: Muon for the matrices (Jordan et al. 2024, in torch.optim), AdamW for the rest.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tools" / "corpus"
BUILD = ROOT / "build" / "tale"
PACKAGE = ROOT / "src" / "unspool" / "tale"

EOS, BOS = "<|endoftext|>", "<|tale|>"
VOCAB_SIZE = 4096
CONTEXT = 1024
SHORT_CONTEXT = 512
COOLDOWN = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Size and schedule of one model; `teacher` names the model whose distribution it learns, or None."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    passes: float
    tokens_per_step: int
    matrix_rate: float
    other_rate: float
    teacher: str | None = None


RECIPES = {
    "tale": Recipe(
        hidden=256,
        intermediate=704,
        layers=6,
        heads=4,
        passes=3.6,
        tokens_per_step=8192,
        matrix_rate=0.02,
        other_rate=3e-3,
    ),
    "draft": Recipe(
        hidden=96,
        intermediate=256,
        layers=2,
        heads=2,
        passes=1.5,
        tokens_per_step=8192,
        matrix_rate=0.02,
        other_rate=5e-3,
        teacher="tale",
    ),
}


def documents(split: str) -> list[str]:
    """Return the tales of one split ("train" or "valid"), each without its boundary line."""
    text = lzma.decompress((CORPUS / f"tales-{split}.txt.xz").read_bytes()).decode("ascii")
    return [doc.strip("\n") for doc in text.split(f"{EOS}\n") if doc.strip()]


def train_tokenizer() -> None:
    """Learn the byte-level BPE from the training split and save it under build/tale/tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents("train"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(BUILD / "tokenizer")


def load_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BUILD / "tokenizer")


def token_stream(split: str) -> torch.Tensor:
    """Return all tales of a split as one row of token ids, each opened by BOS and closed by EOS. --> [tokens]"""
    cached = BUILD / f"{split}.pt"
    if not cached.exists():
        tokenizer = load_tokenizer()
        ids: list[int] = []
        for doc in documents(split):
            ids += [*tokenizer(doc)["input_ids"], tokenizer.eos_token_id]
        torch.save(torch.tensor(ids, dtype=torch.int32), cached)
    return torch.load(cached)


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    tokenizer = load_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(done: float) -> float:
    """Return the learning-rate factor after a share `done` in [0, 1]: warm-up, constant, linear cool-down."""
    return min(1.0, done / 0.01 + 0.02, (1.0 - done) / COOLDOWN)


def batches(stream: torch.Tensor, length: int, rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield one pass over the stream in shuffled windows from a random offset. --> [rows, length + 1]"""
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(length, (1,), generator=generator))
    count = (len(stream) - offset - 1) // length
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - rows + 1, rows):
        begins = offset + order[start : start + rows] * length
        yield torch.stack([stream[b : b + length + 1] for b in begins.tolist()]).long()


def batch_loss(model: LlamaForCausalLM, teacher: LlamaForCausalLM | None, batch: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the next token, or to the teacher's distribution if there is a teacher."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs, use_cache=False).logits.flatten(0, 1)  # --> [rows * length, vocab]
        if teacher is None:
            return F.cross_entropy(logits.float(), targets.flatten())
        with torch.no_grad():
            wanted = teacher(inputs, use_cache=False).logits.flatten(0, 1).float().softmax(-1)
    return -(wanted * logits.float().log_softmax(-1)).sum(-1).mean()


def train(name: str, passes: float | None, limit_minutes: float) -> None:
    """Train one model to its number of passes, saving a checkpoint every five minutes and resuming from the last."""
    recipe = RECIPES[name]
    passes = passes or recipe.passes
    stream = token_stream("train")
    total = int(passes * len(stream))
    torch.manual_seed(1)
    model = build_model(recipe)
    steppers = optimizers(model, recipe)
    teacher = load_trained(recipe.teacher) if recipe.teacher else None
    path = BUILD / f"{name}.pt"
    seen, steps, epoch, skip = 0, 0, 0, 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        seen, steps, epoch, skip = state["seen"], state["steps"], state["epoch"], state["batch"]
    print(
        f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} tokens a pass", flush=True
    )
    started = saved_at = time.monotonic()
    began_at = seen
    while seen < total:
        # Long windows only while cooling down: the model learns its full context last, at a fifth of the cost.
        length = CONTEXT if seen / total > 1 - COOLDOWN else SHORT_CONTEXT
        for index, batch in enumerate(batches(stream, length, recipe.tokens_per_step // length, seed=epoch)):
            if index < skip:
                continue
            factor = rate_factor(seen / total)
            for stepper, rate in zip(steppers, (recipe.matrix_rate, recipe.other_rate), strict=True):
                for group in stepper.param_groups:
                    group["lr"] = rate * factor
                stepper.zero_grad()
            loss = batch_loss(model, teacher, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
            seen, steps = seen + batch[:, 1:].numel(), steps + 1
            now = time.monotonic()
            if steps % 20 == 0:
                speed = (seen - began_at) / (now - started)
                print(
                    f"step {steps} pass {seen / len(stream):.2f} loss {loss.item():.3f} {speed:,.0f} tok/s", flush=True
                )
            stop = seen >= total or now - started > limit_minutes * 60
            if stop or now - saved_at > 300:
                saved_at = now
                save(path, model, steppers, seen=seen, steps=steps, epoch=epoch, batch=index + 1)
            if stop:
                return
            if length == SHORT_CONTEXT and seen / total > 1 - COOLDOWN:
                break  # the windows grow: draw the rest of the run from new ones
        epoch, skip = epoch + 1, 0


def save(path: Path, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer], **counters: int) -> None:
    """Write a checkpoint so that an interruption leaves either the old one or the new one."""
    state: dict[str, Any] = {"model": model.state_dict(), "optimizers": [s.state_dict() for s in steppers], **counters}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_trained(name: str) -> LlamaForCausalLM:
    model = build_model(RECIPES[name])
    model.load_state_dict(torch.load(BUILD / f"{name}.pt")["model"])
    return model.eval()


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM) -> float:
    """Score every held-out tale, its end included, with at least half a context of history, over its bytes of text."""
    tokenizer = load_tokenizer()
    nats, num_bytes = 0.0, 0
    for doc in documents("valid"):
        ids = torch.tensor([*tokenizer(doc)["input_ids"], tokenizer.eos_token_id])
        num_bytes += len(doc.encode())
        scored = 1
        while scored < len(ids):
            begin = max(0, scored - CONTEXT // 2)
            window = ids[begin : begin + CONTEXT]
            logprobs = model(window[None, :-1]).logits[0].log_softmax(-1)  # --> [window - 1, vocab]
            picked = logprobs.gather(1, window[1:, None])[:, 0]
            nats -= picked[scored - begin - 1 :].sum().item()
            scored = begin + len(window)
    return nats / math.log(2) / num_bytes


def export() -> None:
    """Write the package's folder: float16 weights, tokenizer, configs, and the measured figures for the card."""
    figures: dict[str, Any] = {}
    for name in RECIPES:
        if not (BUILD / f"{name}.pt").exists():
            continue
        folder = PACKAGE if name == "tale" else PACKAGE / name
        model = load_trained(name).half()
        ids = load_tokenizer()
        model.generation_config = GenerationConfig(
            bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id
        )
        model.save_pretrained(folder)
        load_tokenizer().save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        widened = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        state = torch.load(BUILD / f"{name}.pt")
        figures[name] = {
            "parameters": sum(p.numel() for p in widened.parameters()),
            "bits_per_byte_valid": round(bits_per_byte(widened), 4),
            "tokens_seen": state["seen"],
            "passes": round(state["seen"] / len(token_stream("train")), 2),
        }
        print(name, figures[name], flush=True)
    (PACKAGE / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (PACKAGE / "README.md").write_text(card(figures))


def card(figures: dict[str, Any]) -> str:
    """Return the model card in Markdown."""
    rows = "\n".join(
        f"| `{name}` | {RECIPES[name].layers} | {RECIPES[name].hidden} | {row['parameters']:,} "
        f"| {row['passes']} | {row['bits_per_byte_valid']} |"
        for name, row in figures.items()
    )
    return CARD.format(rows=rows, vocab=VOCAB_SIZE, context=CONTEXT)


CARD = """# tale: the embedded model

A small language model that writes fairy tales in the manner of the nineteenth century. It ships with Unspool so that
everything can be tried, taught and tested without a download, and it is loaded by `unspool.load()`. It is a toy by
size, not by kind: a Llama architecture that transformers loads as well, with a byte-level BPE of {vocab} tokens and a
context of {context}. `draft` is a much smaller model with the same tokenizer, for speculative decoding.

| Model | Layers | Width | Parameters | Passes over the corpus | Bits per byte, held-out tales |
|---|---|---|---|---|---|
{rows}

Weights are stored in float16 and widened to float32 when loaded on a CPU. No sampling option is stored with them.

**Trained on** 1,035 documents (12.2 MB) of English tales in the public domain, from Lang, Grimm, Andersen, Jacobs,
Wilde, Baum, Carroll and others; tools/corpus/SOURCES.md in the repository names every book, and how it was cleaned.

**Evaluated on** 32 whole tales (256 kB) that it was never trained on: every token, the end of a tale included, is
scored with at least half a context of history where there is that much, and the sum is divided by the bytes of text.

**How**: `tools/train_tale.py` reproduces it from the corpus: Muon for matrices, AdamW for the rest, a constant learning
rate that falls linearly to zero in the last 30 % of the run, windows of 512 tokens and of 1,024 at the end. The draft
learns the distribution of the finished tale model. Another machine or number of threads gives other roundings, so the
weights will be alike, not equal.

**What to expect**: grammatical sentences, a fairy-tale tone, characters that come and go. Plots wander, and facts are
not to be had. The books are of their time: violence, cruelty and old attitudes occur in them, and so they may here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer", help="learn the tokenizer")
    training = commands.add_parser("train", help="train a model, resuming from its checkpoint")
    training.add_argument("name", choices=RECIPES)
    training.add_argument("--passes", type=float, help="passes over the corpus (default: the recipe's)")
    training.add_argument("--minutes", type=float, default=math.inf, help="stop after a checkpoint at this time")
    commands.add_parser("export", help="write weights, tokenizer and figures into the package")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.command == "tokenizer":
        train_tokenizer()
    elif options.command == "train":
        train(options.name, options.passes, options.minutes)
    else:
        export()


if __name__ == "__main__":
    main()
