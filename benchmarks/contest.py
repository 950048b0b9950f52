"""One case: entries warm up, then take turns, round after round. Failures are recorded; other entries continue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.crew import Crew, WorkerFailed
from benchmarks.sides.side import Unavailable
from benchmarks.work import Case, Entry, Work

_NOTHING = Work(prompts=(), new_tokens=0)
_KEPT = ("first_seconds", "passes", "parts")


class Contest:
    """Runs cases on a crew.

    Args:
        crew: the workers.
        folders: the path of each checkpoint.
        weights_read: the number of weights that a pass of each checkpoint reads, if known.
        bandwidth: how many bytes the yardstick reads at a time.
    """

    def __init__(
        self, crew: Crew, folders: Mapping[str, Path], weights_read: Mapping[str, int], *, bandwidth: int
    ) -> None:
        self._crew, self._folders, self._weights_read = crew, folders, weights_read
        self._bandwidth = bandwidth
        self._yardstick: str | None = None

    def run(self, case: Case, *, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Return the record of a case after `runs` counted rounds. say: called with progress messages."""
        players = [self._player(entry, case) for entry in case.entries]
        say(f"{case.name}, warming up")
        for player in players:
            player.attempt(player.warm_up)
        bandwidths: list[float] = []
        for number in range(1, runs + 1):
            say(f"{case.name}, round {number} of {runs}")
            bandwidths += self._read_memory()
            for player in players:
                player.attempt(partial(player.play, number))
        return {
            "name": case.name,
            "title": case.title,
            "checkpoint": case.checkpoint,
            "kind": case.kind,
            "measures": list(case.measures),
            "note": case.note,
            "same_tokens": case.same_tokens,
            "bandwidths": bandwidths,
            "entries": [player.record(players[0]) for player in players],
        }

    def _player(self, entry: Entry, case: Case) -> Player:
        weights = self._weights_read.get(case.checkpoint)
        width = entry.bytes_per_weight
        bytes_per_pass = weights * width if weights is not None and width is not None else None
        return Player(entry, self._crew, self._folders[case.checkpoint], bytes_per_pass)

    @property
    def yardstick(self) -> str:
        """How the bandwidth was measured, in words; "" if it was not."""
        return "" if self._yardstick is None else str(self._crew.facts(self._yardstick)["info"])

    def _read_memory(self) -> list[float]:
        """Return the machine's bandwidth of this minute, in bytes per second; empty if it cannot be measured."""
        try:
            self._yardstick = self._crew.load("bandwidth", Path("memory"), {"bytes": self._bandwidth})
            answer = self._crew.run(self._yardstick, _NOTHING.to_dict())
        except WorkerFailed:
            return []
        return [float(answer["parts"]["bytes_per_second"])]

    def change_checkpoint(self) -> None:
        """Make room for the next checkpoint."""
        self._crew.dismiss(but=self._yardstick)


class Player:
    """A running entry: its runs so far, or the reason for their absence."""

    def __init__(self, entry: Entry, crew: Crew, checkpoint: Path, bytes_per_pass: float | None) -> None:
        self._entry, self._crew, self._checkpoint = entry, crew, checkpoint
        self._bytes_per_pass = bytes_per_pass
        self._key: str | None = None
        self._facts: Mapping[str, Any] = {}
        self._runs: list[dict[str, Any]] = []
        self._status, self._reason = "ok", ""

    def attempt(self, action: Callable[[], None]) -> None:
        """Call it unless the entry has failed; record an error."""
        if self._status != "ok":
            return
        try:
            action()
        except Unavailable as error:
            self._status, self._reason = "unavailable", str(error)
        except WorkerFailed as error:
            self._status, self._reason = "failed", str(error)

    def warm_up(self) -> None:
        """Load the checkpoint, and run a short piece of the work without counting it."""
        self._key = self._crew.load(self._entry.side, self._checkpoint, self._entry.load)
        self._facts = self._crew.facts(self._key)
        self._crew.run(self._key, self._entry.work.brief().to_dict())

    def play(self, number: int) -> None:
        """Do the work of a round and count it, after a pass over all weights that is not counted.

        Weights that were idle for a second are slow to read at first: 10 times as slow on some virtual machines.
        """
        assert self._key is not None, "not warmed up"
        work = self._entry.work
        before = None if self._entry.side == "startup" else work.one_pass().to_dict()
        self._runs.append(self._crew.run(self._key, work.turned(number).to_dict(), before=before))

    def record(self, first: Player) -> dict[str, Any]:
        """Return the entry as plain values; first: the entry with the reference tokens."""
        work = self._entry.work
        facts = self._facts
        return {
            "label": self._entry.label,
            "side": self._entry.side,
            "status": self._status,
            "reason": self._reason,
            "info": facts.get("info", ""),
            "versions": facts.get("versions", {}),
            "load_seconds": facts.get("seconds"),
            "loaded_bytes": facts.get("memory"),
            "peak_bytes": max((run["peak"] for run in self._runs if run["peak"]), default=None),
            "prompts": len(work.prompts),
            "new_tokens": work.new_tokens,
            "load": dict(self._entry.load),
            "options": dict(work.options),
            "bytes_per_pass": self._bytes_per_pass,
            "seconds": [run["seconds"] for run in self._runs],
            **{name: [run[name] for run in self._runs] for name in _KEPT},
            "differences": self._differences(first),
        }

    def _differences(self, first: Player) -> list[list[int]] | None:
        """Return [round, prompt, token] of the first difference of each output; None if tokens are not compared."""
        rounds = list(zip(self._runs, first._runs, strict=False))
        if self is first or not rounds or self._entry.work.prompts != first._entry.work.prompts:
            return None
        return [
            [number, prompt, _first_difference(ours, theirs)]
            for number, (our, their) in enumerate(rounds)
            for prompt, (ours, theirs) in enumerate(zip(our["token_ids"], their["token_ids"], strict=True))
            if ours != theirs
        ]


def _first_difference(ours: list[int], theirs: list[int]) -> int:
    same = [our == their for our, their in zip(ours, theirs, strict=False)]
    return same.index(False) if False in same else len(same)
