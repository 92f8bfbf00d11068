"""The requests of a batch, through a gateway: as many at once as the cluster takes, each until its answer stands."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random
from typing import Any

import aiohttp

from orchestrator.cli import batch_pace
from orchestrator.cli.batch_pace import LOST, Pace
from orchestrator.core.errors import ClusterUnreachable

_CONNECT_SECONDS = 10.0
# So long refused, and nobody answered, the cluster is given up. Its pools may have to be started anew meanwhile.
PATIENCE_SECONDS = 300.0

Answer = tuple[int, str, Any]  # status, the gateway's id of the request, body


class Calls:
    """Sends to one gateway, or to what stands before several.

    Args:
        url: http://host:port
        most: requests under way at once.
    """

    def __init__(self, url: str, most: int, patience: float = PATIENCE_SECONDS) -> None:
        self._url = url.rstrip("/")
        self._patience = patience
        self._pace = Pace(most)
        self._chance = Random()  # noqa: S311 - spreads load, keeps no secret
        self._under_way = 0
        self._room = asyncio.Condition()
        self._refused_since: float | None = None  # nobody got an answer since
        self.retries = 0
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        waits = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=waits, trust_env=False)

    async def close(self) -> None:
        await self._session.close()

    async def models(self) -> list[str]:
        """Those that are served. Raises ClusterUnreachable."""
        try:
            async with self._session.get(f"{self._url}/v1/models") as answer:
                listing = await answer.json()
                return [card["id"] for card in listing["data"]]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            what = f"no gateway answers: {error or type(error).__name__}"
            raise ClusterUnreachable(what, where=self._url) from error

    async def ask(self, path: str, body: bytes, request_id: str) -> Answer:
        """The answer that stands, after as many attempts as are worth it.

        Raises ClusterUnreachable when nobody got an answer for long.
        """
        attempt = 0
        while True:
            attempt += 1
            await self._enter()
            try:
                status, said_id, answer, retry_after = await self._post(path, body, request_id)
            finally:
                await self._leave()
            seconds = batch_pace.pause(status, attempt, retry_after, self._chance.random())
            self._note(status)
            if seconds is None:
                return status, said_id, answer
            self.retries += 1
            await asyncio.sleep(seconds)

    async def _post(self, path: str, body: bytes, request_id: str) -> tuple[int, str, Any, float | None]:
        headers = {"Content-Type": "application/json", "x-request-id": request_id}
        try:
            async with self._session.post(f"{self._url}{path}", data=body, headers=headers) as answer:
                raw = await answer.read()
                said = answer.headers.get("retry-after", "")
                after = float(said) if said.isascii() and said.isdecimal() else None
                return answer.status, answer.headers.get("x-request-id", request_id), _read(raw), after
        except (aiohttp.ClientError, TimeoutError) as error:
            return LOST, request_id, {"error": {"message": f"{type(error).__name__}: {error}"}}, None

    def _note(self, status: int) -> None:
        now = time.monotonic()
        if not batch_pace.is_pressure(status):
            self._refused_since = None
            self._pace.answered()
            return
        self._pace.refused(now)
        self._refused_since = now if self._refused_since is None else self._refused_since
        if now - self._refused_since > self._patience:
            what = f"no request got an answer for {self._patience:g} s (last: {status or 'no connection'})"
            raise ClusterUnreachable(what, where=self._url)

    async def _enter(self) -> None:
        async with self._room:
            await self._room.wait_for(lambda: self._under_way < self._pace.limit)
            self._under_way += 1

    async def _leave(self) -> None:
        async with self._room:
            self._under_way -= 1
            self._room.notify_all()


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
