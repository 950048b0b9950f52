"""Worker processes: what they answer, how they fail, and that they are gone afterwards."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.crew import Crew, WorkerFailed
from benchmarks.sides.side import Unavailable
from benchmarks.work import Work

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups are another thing there")
KILL_THE_WORKER = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    pythons = dict.fromkeys(("startup", "ctranslate2", "no such side"), Path(sys.executable))
    with Crew(pythons, threads=1, logs=tmp_path) as made:
        yield made


def work(code: str) -> dict:
    return Work(prompts=((1,),), new_tokens=1, options={"code": code}).to_dict()


def test_a_worker_answers_whatever_is_printed_meanwhile(crew: Crew, tmp_path: Path):
    key = crew.load("startup", tmp_path, {})
    answer = crew.run(key, work('print(\'{"error": "not me"}\')'))
    assert answer["token_ids"] == []
    assert answer["seconds"] > 0
    assert crew.facts(key)["versions"] == {"python": sys.version.split()[0]}
    assert "not me" in next(tmp_path.glob("*.log")).read_text()


def test_an_error_is_told_and_the_worker_lives_on(crew: Crew, tmp_path: Path):
    key = crew.load("startup", tmp_path, {})
    with pytest.raises(WorkerFailed, match="CalledProcessError: .*exit status 3"):
        crew.run(key, work("raise SystemExit(3)"))
    assert crew.run(key, work("pass"))["passes"] is None


def test_a_worker_that_dies_is_told_and_the_next_case_gets_another(crew: Crew, tmp_path: Path):
    key = crew.load("startup", tmp_path, {})
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="its process"):
            crew.run(key, work(KILL_THE_WORKER))
    assert crew.run(crew.load("startup", tmp_path, {}), work("pass"))["seconds"] > 0


def test_what_is_not_installed_is_unavailable_and_asked_for_once(crew: Crew, tmp_path: Path):
    for _ in range(2):
        with pytest.raises(Unavailable, match="ctranslate2 is not installed"):
            crew.load("ctranslate2", tmp_path, {"weights": "float32"})
    assert len(list(tmp_path.glob("*ctranslate2*.log"))) == 1


def test_a_worker_that_does_not_start_fails_with_its_last_words(crew: Crew, tmp_path: Path):
    with pytest.raises(WorkerFailed, match="KeyError: 'no such side'"):
        crew.load("no such side", tmp_path, {})


def test_a_checkpoint_that_would_fill_the_memory_is_not_loaded(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("benchmarks.crew.available_bytes", lambda: 1000)
    (tmp_path / "model.safetensors").write_bytes(b"." * 501)
    with pytest.raises(Unavailable, match="GiB of memory"):
        crew.load("startup", tmp_path, {})


def test_nothing_runs_on_after_the_crew_is_left(tmp_path: Path):
    with Crew({"startup": Path(sys.executable)}, threads=1, logs=tmp_path) as crew:
        key = crew.load("startup", tmp_path, {})
        code = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getppid()))"
        crew.run(key, work(code))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_busy_worker_is_stopped_too_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.crew._GRACE_SECONDS", 0.2)
    monkeypatch.setattr("benchmarks.crew._LONGEST_SECONDS", 1.0)
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with Crew({"startup": Path(sys.executable)}, threads=1, logs=tmp_path) as crew:
        key = crew.load("startup", tmp_path, {})
        with pytest.raises(WorkerFailed, match="did not answer"):
            crew.run(key, work(code))
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # whoever adopted it may be slow to notice
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the worker's own process still runs")
