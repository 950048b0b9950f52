"""The sample of a long table is fixed, in order, and gives way to the whole."""

import pytest

from tests.sampling import ALL, sampled

CASES = [f"case {number}" for number in range(100)]


@pytest.fixture
def default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALL, raising=False)


@pytest.mark.usefixtures("default_run")
def test_a_sample_is_the_same_every_time_and_keeps_the_order():
    first = sampled(CASES, 10)
    assert first == sampled(CASES, 10)
    assert len(set(first)) == 10
    assert first == sorted(first, key=CASES.index)
    assert first != sampled(CASES, 10, seed=1)


@pytest.mark.usefixtures("default_run")
def test_a_short_table_is_taken_whole():
    assert sampled(CASES, 100) == sampled(CASES, 1000) == CASES


def test_all_takes_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ALL, "1")
    assert sampled(CASES, 10) == CASES
