"""The command line: what is chosen, what is refused, where figures go."""

import sys
from pathlib import Path

import pytest

from benchmarks import environment, machine
from benchmarks.cases import TALE
from benchmarks.command import main
from benchmarks.results import read
from benchmarks.work import Case, Entry, Work


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main([*arguments, "--list"])
    return capsys.readouterr().out.splitlines()


def test_cases_are_chosen_by_words_of_their_names(capsys: pytest.CaptureFixture[str]):
    everything = listed(capsys)
    some = listed(capsys, "--only", "beam-5", "start")
    assert 0 < len(some) < len(everything)
    assert all("beam-5" in line.split()[0] or line.startswith("start-up") for line in some)


def test_peers_are_left_out(capsys: pytest.CaptureFixture[str]):
    assert not any(": unspool, " in line for line in listed(capsys, "--peers", "none"))
    (line,) = listed(capsys, "--only", "llama-bfloat16/greedy", "--peers", "llama.cpp")
    assert line.endswith(": unspool, llama.cpp f16, llama.cpp bf16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "no case has 'nonsense' in its name"),
        (["--peers", "none", "transformers"], "not both"),
        (["--runs", "0"], "2"),
        (["--peers", "vllm"], "2"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--list"])


def only(*codes: str) -> Case:
    """Return a case of new processes, each with a line to run."""
    entries = tuple(
        Entry(label=code, side="startup", work=Work(prompts=((1,),), new_tokens=1, options={"code": code}))
        for code in codes
    )
    return Case(name="start-up", title="a process", checkpoint=TALE, entries=entries, kind="cost")


def test_a_run_leaves_a_report_and_a_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("benchmarks.command.cases", lambda *given, **further: [only("pass", "raise SystemExit(5)")])
    file = tmp_path / "record.json"
    with pytest.raises(SystemExit, match="something failed"):
        main(["--quick", "--runs", "2", "--cache", str(tmp_path), "--out", str(file), "--threads", "1"])
    shown = capfd.readouterr().out
    assert "exit status 5" in shown and str(file) in shown
    record = read(file)
    assert record["finished"] and record["quick"]
    assert [len(entry["seconds"]) for entry in record["cases"][0]["entries"]] == [2, 0]
    assert [entry["status"] for entry in record["cases"][0]["entries"]] == ["ok", "failed"]
    assert len(record["cases"][0]["bandwidths"]) == 2


def test_a_peer_that_crashes_does_not_fail_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    case = only("pass", "raise SystemExit(5)")
    monkeypatch.setattr("benchmarks.command.cases", lambda *given, **further: [case])
    monkeypatch.setattr("benchmarks.command.PEERS", ("startup",))
    monkeypatch.setattr("benchmarks.command._with_peers", lambda chosen, peers: list(chosen))
    places = ["--cache", str(tmp_path), "--out", str(tmp_path / "record.json"), "--peers-python", sys.executable]
    main(["--quick", "--runs", "1", "--threads", "1", *places])
    assert "Failed, and left out: startup" in capfd.readouterr().out
    assert read(tmp_path / "record.json")["finished"]


@pytest.mark.parametrize(("vector", "named"), [("AVX2, AVX-512", False), ("AVX-512, VNNI, BF16, AMX", True)])
def test_llama_cpp_is_built_without_amx(vector: str, named: bool):
    options = environment._llama_cpp_options(vector).get("CMAKE_ARGS", "")
    assert ("-DGGML_NATIVE=OFF" in options) is named and "AMX" not in options


def test_the_machine_has_a_name_for_files():
    facts = {"cpu": "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "cores": 8}
    assert machine.short_name(facts) == "intel-xeon-platinum-8488c-8-cores"
    assert machine.short_name(facts | {"vector": "AVX2, AVX-512"}) == "intel-xeon-platinum-8488c-avx512-8-cores"
    virtual = {"cpu": "AMD EPYC (family 26, model 2)", "cores": 2}
    assert machine.short_name(virtual) == "amd-epyc-26-2-2-cores", "another family can have the same name"
    assert machine.short_name(machine.describe(1)).endswith(f"-{machine.num_cores()}-cores")


def test_a_cpu_is_named_with_its_family_and_model(monkeypatch: pytest.MonkeyPatch):
    fields = {"model name": "AMD EPYC", "cpu family": "26", "model": "2"}
    monkeypatch.setattr(machine, "_cpuinfo", fields.get)
    assert machine.cpu_name() == "AMD EPYC (family 26, model 2)"
    monkeypatch.setattr(machine, "_cpuinfo", {"model name": "AMD EPYC"}.get)
    assert machine.cpu_name() == "AMD EPYC"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_in_use_is_seen():
    from benchmarks.memory import forget_peak, peak_bytes, resident_bytes

    forget_peak()
    before = resident_bytes()
    held = bytearray(b"." * (64 * 2**20))
    after, peak = resident_bytes(), peak_bytes()
    assert before is not None and after is not None and peak is not None
    assert after - before > 0.9 * len(held)
    del held
    forget_peak()
    fresh = peak_bytes()
    assert fresh is not None and fresh < peak
