"""The target as its fuzzer sees it: where it listens, what it answers, and whether it still lives."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 280.0
ANSWER_SECONDS = 120.0
QUIET_SECONDS = 45.0  # longer than a prefill that nobody collects stays pinned


class HangError(AssertionError):
    """No answer within the bound."""


class Aim:
    """One target process. Its errors are counted from ``told``."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.held = ExitStack()  # what clients keep open, until the target ends
        self._output = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.target"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        places = self._read(START_SECONDS)
        self.http: str = places["http"].removeprefix("http://")
        self.grpc: str = places["grpc"]
        self.fleet: str = places["fleet"]
        self.workers: dict[str, str] = places["workers"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Raises HangError where it does not answer, AssertionError where it is gone."""
        assert self._process.stdin is not None
        assert self.alive(), f"the target died; {self._log} has its last words"
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._read(ANSWER_SECONDS)

    def errors(self) -> dict[str, Any]:
        """How many errors were logged, and the last of them."""
        return self.ask("errors")

    def account(self) -> dict[str, Any]:
        return self.ask("account")

    def quiet(self, seconds: float = QUIET_SECONDS) -> dict[str, Any]:
        return self.ask("quiet", seconds=seconds)

    def end(self) -> None:
        self.held.close()
        if self.alive():
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._output):
            if pipe is not None:
                pipe.close()

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        while True:
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise HangError(f"no answer in {seconds:g} s; {self._log} has its last words")
            line = self._process.stdout.readline()
            assert line, f"the target died; the end of its log:\n{self._log.read_text()[-3000:]}"
            if line.startswith("{"):
                return dict(json.loads(line))


@contextmanager
def aimed(log: Path) -> Iterator[Aim]:
    """A target that ends with the block."""
    aim = Aim(log)
    try:
        yield aim
    finally:
        aim.end()
