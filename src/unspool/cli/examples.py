"""Examples for `--help`: complete command lines for the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "": (
        'unspool generate "Once upon a time"',
        'unspool generate "Once upon a time" --temperature 0.8 --seed 7',
        "unspool COMMAND --help",
    ),
    "serve": (
        "unspool serve",
        "unspool serve --port 8080 --api-key secret",
        "unspool serve --assistant-model tale-draft --max-running 16",
    ),
    "explore": (
        "unspool explore",
        "unspool explore --port 8080 --no-browser",
    ),
    "generate": (
        'unspool generate "Once upon a time" --temperature 0.8 --seed 7',
        'unspool generate "The king" --num-beams 4 --force-words fox,forest --max-new-tokens 40',
        'printf "The fox\\nThe owl\\n" | unspool generate --prompts - --max-new-tokens 20 --json',
    ),
    "chat": (
        "unspool chat --plain --temperature 0.7",
        'echo "Who are you?" | unspool chat --plain --system "You are a fox." --max-new-tokens 20',
    ),
    "next": (
        'unspool next "The king and the"',
        'unspool next "The king and the" --temperature 0.7 --top-p 0.9 --limit 5',
    ),
    "score": (
        'unspool score "The fox ran into the forest."',
        'unspool score " ran away." " sang a song." --prompt "The fox"',
        'printf "The fox ran.\\nThe fox sang.\\n" | unspool score --texts - --json',
    ),
    "trace": (
        'unspool trace "The fox" --num-beams 3',
        'unspool trace "The fox" --temperature 0.8 --top-k 5 --seed 7',
    ),
    "compare": (
        'unspool compare "The fox" --strategies greedy,sample,beam --seed 7',
        'unspool compare "The fox" --temperature 0.7 --max-new-tokens 20',
    ),
    "models": (
        "unspool models",
        "unspool models --json",
    ),
    "tune": (
        "unspool tune --model tale",
        "unspool tune --model tale --dtype bfloat16 --json",
    ),
}
"""Command name --> its examples; the empty name is the program itself."""
