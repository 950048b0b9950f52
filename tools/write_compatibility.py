"""Write docs/compatibility.md from a run of every family by every option; takes a few minutes.

    python tools/write_compatibility.py            # examine every cell and write the page
    python tools/write_compatibility.py --check    # examine nothing; exit 1 if the page is not the tests' table

If a cell differs from the table of the tests, the page is not written: tests/parity/families.py has the reasons.
"""

from __future__ import annotations

import argparse
import os
import string
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAGE = ROOT / "docs" / "compatibility.md"

INTRODUCTION = """\
# Compatibility

Written by `python tools/write_compatibility.py`, which runs every cell of these tables; `make test` runs a sample of
them, `make test-all` all. The tables are those of transformers VERSION. Each family is there as a tiny model with
random weights. So the tables test the code of the family, not a checkpoint.

**✓** means **exact**: the tokens are, one by one, those that

- the same strategy writes when each of its rows is what the model's own forward says of the whole sequence, without any
  cache; and
- `model.generate` of transformers writes, where transformers 5 has the option and draws nothing. For models without a
  source the drop-in `unspool.generate` writes them as well.

A letter is the reason why not, below. transformers 5 has dropped diverse, constrained and contrastive search and DoLa;
there the strategies are compared with recorded runs of transformers 4.48 on GPT-2, Llama, GPT-NeoX, T5 and BART
(`tests/oracle`), and the families here with the model's own rows. A drawn token depends on the noise, which is
Unspool's: sampling is compared with the model's own rows under the same seed, alone and in a batch.
"""

HEADINGS = {
    "slot cache": (
        "On the slot cache",
        "The fastest path: models that use transformers' attention interface. Nothing is padded, and forks copy what "
        "differs.",
    ),
    "generic backend": (
        "On the generic backend",
        "transformers' own caches and recurrent states, sequences of one length side by side.",
    ),
    "recomputation": (
        "By recomputation",
        "No cache that helps: every forward reads the whole sequence.",
    ),
    "passes over equal lengths": (
        "With a source",
        "Encoder-decoders, and GIT, which keeps its image in front of the text. The source is read once for a request.",
    ),
}

OPTION_TEXTS = {
    "greedy": "greedy search",
    "lengths": "`min_new_tokens` and `max_new_tokens`, with several `eos_token_id`",
    "repetition_penalty": "greedy with `repetition_penalty=1.4`",
    "no_repeat_ngram_size": "greedy with `no_repeat_ngram_size=2`",
    "beams": "`num_beams=4`, `length_penalty=0.8`",
    "several outputs": "`num_beams=4`, `num_return_sequences=3`, `early_stopping=True`",
    "padded batch": "three prompts of different length in one batch, equal to each alone as well; for transformers "
    "they are padded on the left, texts for an encoder on the right",
    "padded beams": "the same with `num_beams=3`",
    "prompt lookup": "`prompt_lookup_num_tokens=3`: equal to greedy search",
    "assisted": "`assistant_model`: equal to greedy search",
    "guidance": "`guidance_scale=3.0`, with a `negative_prompt`",
    "sampling": "`temperature`, `top_p`, three outputs under a seed; the same alone and in a batch",
    "beam sampling": "`do_sample=True`, `num_beams=3`",
    "diverse beams": "`num_beam_groups=2`, `diversity_penalty=0.7`",
    "constrained beams": "`force_words_ids` of two tokens, which the output holds",
    "contrastive": "`penalty_alpha=0.5`, `top_k=4`",
    "DoLa": '`dola_layers="low"`',
    "inputs_embeds": "`num_beams=2` through the drop-in: padded prompts, or texts for an encoder, as embeddings",
}


LATER = """
## With transformers 5.24

All cells were also run with transformers 5.24.0. They are equal, up to these changes of transformers:

- GPT-J and CodeGen use its attention interface, so they run on the slot cache.
- Guidance of Mamba 2 is exact. Mamba and Falcon Mamba still differ: they multiply one new token by a mask of all
  tokens.
- XLM takes a cache. Before each step it reads a mask token, which stays in the cache and counts as text. Unspool
  leaves mask tokens out of later steps, as transformers does with `use_cache=False`.
"""

RESULTS_TEXT = """\
Here **✓** means that the drop-in returns the values of transformers, in its shapes: attentions and hidden states of
greedy search ("states") and of three beams, and `past_key_values` as a cache of transformers. Mamba has no attentions.
"""


def main() -> int:
    """Return the exit code: 1 if --check finds the page stale, or if a cell differs from the table of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="examine and change nothing; exit 1 if the page is stale")
    if parser.parse_args().check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print("docs/compatibility.md is stale: run python tools/write_compatibility.py", file=sys.stderr)
        return 1
    faults = run()
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        PAGE.write_text(page(), encoding="utf-8")
    return bool(faults)


def run() -> list[str]:
    """Examine every cell. Returns those that are not as the table has them, in words."""
    from transformers.utils import logging

    from tests.parity.families import CELLS, examine, expected_word
    from tests.parity.media import CELLS as MEDIA_CELLS
    from tests.parity.media import fault_of

    logging.set_verbosity_error()
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family, option in CELLS:
            found, expected = examine(family, option), expected_word(family, option)
            if found.word != expected:
                faults.append(f"{family}, {option}: {found.word}, and the table says {expected}: {found.detail}")
        for family, column in MEDIA_CELLS:
            if fault := fault_of(family, column):
                faults.append(f"{family}, {column}: {fault}")
    return faults + result_faults()


def result_faults() -> list[str]:
    """Examine the results of every family. Returns those that are not as the table has them, in words."""
    from tests.parity.results import CELLS, KNOWN, fault_of

    found = {cell: fault_of(*cell) for cell in CELLS}
    return [f"{cell}: {fault or 'exact'}" for cell, fault in found.items() if bool(fault) != (cell in KNOWN)]


def page() -> str:
    """Return the page as the tests' table has it."""
    import transformers

    from tests.parity import media
    from tests.parity.families import GROUPS, LABELS, OPTIONS, REASONS, WITHOUT_MEMORY
    from tests.parity.results import KNOWN as RESULTS_KNOWN
    from tests.parity.results import REASONS as RESULTS_REASONS
    from tests.parity.results import RESULTS

    letters = dict(zip((id(reason) for reason in REASONS), string.ascii_lowercase, strict=False))
    marks = {
        (family, option): letters[id(reason)]
        for reason in REASONS
        for family in reason.families
        for option in reason.options
    }
    parts = [INTRODUCTION, "## The options\n", "| Column | What is asked |\n|---|---|"]
    parts += [f"| {option} | {OPTION_TEXTS[option]} |" for option in OPTIONS]
    for group, families in GROUPS.items():
        heading, text = HEADINGS[group]
        parts += [f"\n## {heading}\n\n{text}\n", _row(["Family", *OPTIONS]), _row(["---"] * (len(OPTIONS) + 1))]
        parts += [
            _row([LABELS[family], *(marks.get((family, option), "✓") for option in OPTIONS)]) for family in families
        ]
    parts += _media()
    parts += ["\n## Results\n", RESULTS_TEXT, _row(["Family", *RESULTS]), _row(["---"] * (len(RESULTS) + 1))]
    parts += [
        _row([LABELS[family], *(RESULTS_KNOWN.get((family, column), "✓") for column in RESULTS)])
        for families in GROUPS.values()
        for family in families
    ]
    parts.append("\n## Why not\n")
    for reason in REASONS:
        names = ", ".join(LABELS[family] for family in reason.families)
        parts.append(f"- **{letters[id(reason)]}** ({', '.join(reason.options)}; {names}): {reason.text}")
    parts += [_reason(letter, *reason, LABELS) for letter, reason in RESULTS_REASONS.items()]
    parts += [_reason(letter, *reason, media.LABELS) for letter, reason in media.REASONS.items()]
    given = "; ".join(
        f"{LABELS[family]}: `{name}={value}`" for family, one in WITHOUT_MEMORY.items() for name, value in one.items()
    )
    parts.append(
        "\nFor some models, transformers runs here without its memory, because the memory refuses beams or continues "
        f"with values of other tokens ({given})."
    )
    parts.append(LATER)
    return "\n".join(parts).replace("VERSION", transformers.__version__).rstrip() + "\n"


def _reason(letter: str, cells: Sequence[tuple[str, str]], text: str, labels: Mapping[str, str]) -> str:
    """Return the line of a reason for several cells, (family, column)."""
    names = ", ".join(labels[family] for family, _ in cells)
    return f"- **{letter}** ({', '.join(dict.fromkeys(column for _, column in cells))}; {names}): {text}"


def _media() -> list[str]:
    """Return the table of models for images and audio."""
    from tests.parity.media import COLUMNS, KNOWN, LABELS, backend_of

    text = (
        "Models that read images or audio in the prompt, through the drop-in with `output_scores`. **✓**: tokens, "
        "scores and output class are those of `model.generate`, and in the last columns the states or the cache. The "
        "model's own forward reads each prompt once; then the backend decodes. All columns but the second ask for the "
        "padded batch of the first."
    )
    parts = [f"\n## Images and audio\n\n{text}\n", "| Column | What is asked |\n|---|---|"]
    parts += [f"| {name} | {column.text} |" for name, column in COLUMNS.items()]
    parts += ["", _row(["Family", "Backend", *COLUMNS]), _row(["---"] * (len(COLUMNS) + 2))]
    parts += [
        _row([LABELS[family], backend_of(family), *(KNOWN.get((family, column), "✓") for column in COLUMNS)])
        for family in LABELS
    ]
    return parts


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
