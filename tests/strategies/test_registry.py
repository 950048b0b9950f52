"""A strategy is one file: a package that offers one makes it known by name to Python, the command line and compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unspool.config import OPTIONS
from unspool.strategies import STRATEGIES, registry

LAST_RESORT = '''
"""Takes the `top_k`-th best token at every step."""

from unspool.protocols import Strategy
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Commit, Extend, Hypothesis, Top, Turn


class LastResort(Strategy):
    name = "last_resort"
    space = "logits"
    facts = StrategyFacts(
        reads=frozenset({"top_k"}),
        needs="top_k",
        is_met=lambda values, assistant: bool(values["top_k"]),
        line_up={"second_best": {"top_k": 2}},
    )

    def max_branches(self, config):
        return 1

    def run(self, context):
        ask = (Top(ROOT, context.config.top_k),)
        reply = yield Turn(asks=ask)
        length, score = 0, 0.0
        while True:
            worst = reply[0].candidates[-1]
            score += worst.logprob
            if worst.ends:
                return [Hypothesis(ROOT, length, worst, score)]
            length += 1
            move = Extend(ROOT, (worst.token,))
            reply = yield Turn(moves=(move,), asks=ask, commits=(Commit(ROOT, ROOT, length),))
'''

USE_IT = """
import json
import unspool

lm = unspool.load()
options = {"strategy": "last_resort", "top_k": 2, "max_new_tokens": 5}
try:
    lm.generate("The king", strategy="last_resort", max_new_tokens=5)
except unspool.OptionError as error:
    refusal = str(error)
print(json.dumps({
    "text": lm.generate("The king", **options).text,
    "refusal": refusal,
    "compared": {name: answer.text for name, answer in lm.compare("The king", max_new_tokens=5, seed=1).items()},
}))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which a package with one more strategy is installed."""
    (tmp_path / "extra_strategies").mkdir()
    (tmp_path / "extra_strategies" / "__init__.py").touch()
    (tmp_path / "extra_strategies" / "last_resort.py").write_text(LAST_RESORT)
    facts = tmp_path / "extra_strategies-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-strategies\nVersion: 1.0\n")
    entry = "last_resort = extra_strategies.last_resort:LastResort"
    broken = "broken = extra_strategies.absent:Absent"
    (facts / "entry_points.txt").write_text(f"[unspool.strategies]\n{entry}\n{broken}\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "NO_COLOR": "1"}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.model
def test_a_strategy_of_another_package_is_used_by_name_everywhere(environment: dict[str, str]) -> None:
    done = run(environment, "-c", USE_IT)
    assert done.returncode == 0, done.stderr
    assert "the strategy 'broken' of extra_strategies.absent:Absent is left out" in done.stderr
    found = json.loads(done.stdout)
    assert found["text"] and found["compared"]["second_best"] == found["text"]
    assert "needs top_k" in found["refusal"]
    options = ["--strategy", "last_resort", "--top-k", "2", "--max-new-tokens", "5", "--json"]
    done = run(environment, "-m", "unspool.cli.main", "generate", "The king", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["completions"][0]["text"] == found["text"]


def test_every_strategy_of_the_folder_is_found() -> None:
    folder = Path(registry.__file__).parent
    named = {
        line.split('"')[1]
        for file in folder.glob("*.py")
        if "facts = StrategyFacts(" in file.read_text()
        for line in file.read_text().splitlines()
        if line.startswith('    name = "')
    }
    assert named == set(STRATEGIES) and len(named) >= 11


def test_the_option_table_lists_the_strategies_that_read_an_option() -> None:
    for name, strategy in STRATEGIES.items():
        for option in strategy.facts.reads & OPTIONS.keys():
            assert name in OPTIONS[option].read_by
    assert "greedy" not in OPTIONS["top_p"].read_by and "dola" in OPTIONS["top_p"].read_by
