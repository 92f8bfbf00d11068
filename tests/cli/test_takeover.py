"""The real `segue` with a controller that is killed: requests flow, and another goes on with what runs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from orchestrator.cli.run_folder import RunFolder
from tests.cli.test_end_to_end import END_SECONDS, START_SECONDS, Scene, scene, segue, wait_until

__all__ = ["scene"]
pytestmark = pytest.mark.ray
TOKENS = 60


class Load:
    """Clients that ask one after the other until they are told to stop; a list of what each request became."""

    def __init__(self, port: int, clients: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/completions"
        self._over = threading.Event()
        self.outcomes: list[tuple[float, float, str]] = []  # began, ended, "" or why it is no good
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                why = self._ask()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            self.outcomes.append((began, time.monotonic(), why))

    def _ask(self) -> str:
        fields = {"model": "tiny", "prompt": "all that runs", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
        options = {"include_usage": True}
        body = json.dumps(fields | {"stream_options": options}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            events = [line.removeprefix(b"data: ").strip() for line in answer if line.startswith(b"data: ")]
        if events[-1] != b"[DONE]":
            return f"ended with {events[-1]!r}"
        tokens = json.loads(events[-2])["usage"]["completion_tokens"]
        return "" if tokens == TOKENS else f"{tokens} tokens"


def status() -> dict[str, Any]:
    told = segue("status", "--json")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def pids(told: dict[str, Any]) -> list[int]:
    workers = [worker["pids"]["actor"] for pool in told["models"][0]["pools"] for worker in pool["workers"]]
    return workers + [gateway["pid"] for gateway in told["gateways"]]


def until_told(seen: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        nonlocal found
        with suppress(json.JSONDecodeError):
            found = status()
        return bool(found) and seen(found)

    wait_until(look, what, START_SECONDS)
    return found


def test_a_controller_that_is_killed_under_load_costs_no_request_and_another_goes_on(scene: Scene) -> None:
    started = segue("up", "--detach", str(scene.config), seconds=START_SECONDS)
    assert started.returncode == 0, started.stdout + started.stderr
    record = RunFolder.of("e2e").read()
    assert record is not None
    scene.owner = record.pid
    scene.look()
    before = until_told(
        lambda told: told["ready"] and all(one["state"] == "ready" for one in told["gateways"]), "all gateways"
    )
    load = Load(scene.ports[0], clients=3)
    wait_until(lambda: len(load.outcomes) >= 6, "the first answers")

    killed_at = time.monotonic()
    os.kill(before["controller"]["pid"], signal.SIGKILL)
    old = before["controller"]["pid"]
    after = until_told(lambda told: told["controller"]["pid"] != old and not told["controller"]["away"], "another")
    back_at = time.monotonic()
    wait_until(lambda: any(began > back_at for began, _, _ in load.outcomes), "answers after it")

    assert after["ready"]
    assert pids(after) == pids(before)
    assert after["controller"]["address"] == before["controller"]["address"]
    assert after["controller"]["term"] > before["controller"]["term"]

    lost = before["models"][0]["pools"][1]["workers"][0]["pids"]["actor"]
    os.kill(lost, signal.SIGKILL)
    then = until_told(lambda told: told["ready"] and lost not in pids(told), "the worker's replacement")
    assert then["models"][0]["pools"][1]["workers"][0]["restarts"] == 1
    load.stop()
    assert not [why for _, _, why in load.outcomes if why]
    assert any(began < killed_at < ended for began, ended, _ in load.outcomes), "none was caught in the act"
    assert any(killed_at < began < back_at for began, _, _ in load.outcomes), "none was taken while it was away"
    told = (RunFolder.of("e2e").path / "up.log").read_text()
    assert "and is back; it took over what runs (term 2)" in told

    scene.look()
    os.kill(after["controller"]["pid"], signal.SIGKILL)
    ended = segue("down", seconds=END_SECONDS)  # while there is no controller
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wait_until(lambda: not scene.living(), "the end of all")
    scene.assert_nothing_is_left()
