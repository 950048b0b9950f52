"""The servers of the contest: how each starts, and what a request to it looks like."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.serve.model import Forms

_START_SECONDS: Final = 180.0
_END_SECONDS: Final = 10.0

CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Program:
    """One server.

    name: in tables. command: returns the command line for the forms of the model, a port, and a number of threads.
    model: returns its name for the model in requests. more: further fields of a request. absent: why it cannot run
    here; empty if it can.
    """

    name: str
    command: Callable[[Forms, int, int], Sequence[str]]
    model: Callable[[Forms], str]
    more: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""


def programs(peers: Path, llama_server: Path | None, *, most_clients: int) -> list[Program]:
    """Return all servers, Unspool first.

    Args:
        peers: interpreter of the environment of the peers.
        llama_server: the executable of llama.cpp's server; None for the server in the peers' package `xllamacpp`.
        most_clients: number of sequences that a server must be able to decode at once.
    """
    transformers = peers.with_name("transformers")
    launcher = Path(__file__).with_name("llama.py")
    no_transformers = "" if transformers.exists() else f"{transformers} is absent"
    packaged = list(peers.parents[1].glob("lib/python*/site-packages/xllamacpp"))
    no_llama = "" if llama_server or packaged else "xllamacpp is absent from the environment of the peers"

    def unspool(forms: Forms, port: int, threads: int, *more: str) -> Sequence[str]:
        command = (sys.executable, "-m", "unspool.cli.main", "serve", "--model", str(forms.folder), "--port", str(port))
        return (*command, "--threads", str(threads), "--served-model-name", "m", *more)

    def of_transformers(forms: Forms, port: int, *more: str) -> Sequence[str]:
        return (str(transformers), "serve", str(forms.folder), "--port", str(port), "--device", "cpu", *more)

    def of_llama(file: Path, port: int, threads: int) -> Sequence[str]:
        if llama_server is None:
            return (str(peers), str(launcher), str(file), str(port), str(threads), str(most_clients))
        places = ("--parallel", str(most_clients), "--ctx-size", str(512 * most_clients))
        return (str(llama_server), "--model", str(file), "--port", str(port), "--threads", str(threads), *places)

    def folder(forms: Forms) -> str:
        return str(forms.folder)

    def any_name(forms: Forms) -> str:
        return "m"

    return [
        Program("unspool", unspool, any_name, {"ignore_eos": True}),
        Program(
            "transformers serve", lambda forms, port, threads: of_transformers(forms, port), folder,
            absent=no_transformers,
        ),
        Program(
            "transformers serve, continuous batching",
            lambda forms, port, threads: of_transformers(forms, port, "--continuous-batching"),
            folder,
            absent=no_transformers,
        ),
        Program(
            "llama.cpp, float32", lambda forms, port, threads: of_llama(forms.wide, port, threads), any_name,
            {"ignore_eos": True, "cache_prompt": False}, no_llama,
        ),
        Program(
            "llama.cpp, q4_1", lambda forms, port, threads: of_llama(forms.gguf, port, threads), any_name,
            {"ignore_eos": True, "cache_prompt": False}, no_llama,
        ),
    ]  # fmt: skip


def body(program: Program, forms: Forms, prompt: str, tokens: int) -> dict[str, Any]:
    """Return the body of a streamed, greedy chat request."""
    messages = [{"role": "user", "content": prompt}]
    head = {"model": program.model(forms), "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}
    return {**head, **program.more}


@contextmanager
def running(program: Program, forms: Forms, *, threads: int, log: Path) -> Iterator[str]:
    """Start a server, yield its address when it answers, and stop it.

    Raises:
        RuntimeError: if it ends or stays silent; the message names its log.
    """
    port = _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(program.command(forms, port, threads), stdout=out, stderr=out, env=env)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process, program, log)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], program: Program, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with suppress(OSError, ValueError), urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            json.load(answer)
            return
        time.sleep(0.2)
    raise RuntimeError(f"{program.name} did not start; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
