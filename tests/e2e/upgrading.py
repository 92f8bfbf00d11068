"""A cluster that is upgraded while others ask it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.clients import Clients
from tests.chaos.transcript import DONE, Ask, Transcript
from tests.e2e.conftest import RealCluster

UPGRADE_SECONDS = 400
AT_A_TIME = 6


class Load:
    """Streams over HTTP connections that stay open, and over gRPC, until it is told to end.

    ``asked``: the request of each number, from 1 on.
    """

    def __init__(self, cluster: RealCluster, asked: Callable[[int], Ask]) -> None:
        self._asked = asked
        self._clients = Clients(cluster.url, cluster.grpc, "m")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._clients.run(self._asks(), AT_A_TIME)))

    def _asks(self) -> Iterator[Ask]:
        for number in itertools.count(1):
            if self._ends.is_set():
                return
            yield self._asked(number)

    @property
    def transcripts(self) -> list[Transcript]:
        return self._clients.transcripts

    @contextmanager
    def under_way(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ends.set()
            self._thread.join(60)

    def wrong(self) -> list[str]:
        """Requests that did not come through in one go with the tokens of a quiet run."""
        found = []
        for transcript in self.transcripts:
            first, *again = transcript.attempts
            expected = {index: transcript.ask.expected(index) for index in range(transcript.ask.n)}
            if again or first.ends != [DONE] or first.tokens != expected:
                lengths = {index: len(tokens) for index, tokens in first.tokens.items()}
                found.append(f"{transcript.ask.number}: {first.ends}, {len(again)} again, {lengths} {first.said}")
        return found


def upgraded(cluster: RealCluster, config: dict[str, Any], file: Path, code: int = 0, *options: str) -> str:
    file.write_text(yaml.safe_dump(config))
    said = cluster.segue("upgrade", str(file), *options, timeout=UPGRADE_SECONDS)
    assert said.returncode == code, said.stdout + said.stderr
    return said.stdout + said.stderr


def pools(cluster: RealCluster) -> dict[str, list[str]]:
    (model,) = [model for model in cluster.status()["models"] if model["name"] == "m"]
    return {pool["role"]: [f"{one['id']} {one['state']}" for one in pool["workers"]] for pool in model["pools"]}
