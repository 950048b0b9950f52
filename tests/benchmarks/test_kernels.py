"""The table of kernels: every kernel runs, and a line holds its shares and times."""

import re

import pytest

from benchmarks import kernels as bench
from unspool.kernels.library import kernels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "_COPIES", 1 << 14)
    monkeypatch.setattr(bench, "_YARDSTICK", 1 << 20)


def test_the_table_has_a_line_per_shape_type_and_kernel(capsys):
    bench.main(["--shapes", "64x96", "32x70", "--rows", "1", "3"])
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|---"))
    body = lines[start + 1 :]
    ours = 1 if kernels() else 0
    assert len(body) == 2 * (2 * (ours + 2) + 2 * (ours + 1))
    cell = r"\d+%, \d+ µs"
    assert all(re.fullmatch(rf"\| \d+x\d+ \w+ \| [^|]+ \| {cell} \| {cell} \| [\d.]+ \|", line) for line in body)


def test_an_unknown_type_is_refused():
    with pytest.raises(SystemExit):
        bench.main(["--types", "int3"])
