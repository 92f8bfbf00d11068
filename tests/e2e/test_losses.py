"""Parts die; the cluster says so, mends itself, and requests go on. These run last: they disturb the shared cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.conftest import APART, RealCluster

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(300)]

ASK = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Describe a person who lives by a river."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "city": {"type": "string", "maxLength": 30},
        "work": {"type": "string", "maxLength": 60},
        "hobby": {"type": "string", "maxLength": 60},
    },
    "required": ["name", "age", "city", "work", "hobby"],
    "additionalProperties": False,
}
AS_JSON: dict[str, Any] = {
    "temperature": 0,
    "max_tokens": 150,
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    "extra_body": {"repetition_penalty": 1.1},
}
ASKS: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 120, "extra_body": {"ignore_eos": True}},
    {"temperature": 1.0, "seed": 7, "max_tokens": 120, "extra_body": {"ignore_eos": True}},
    {"temperature": 0.8, "seed": 8, "n": 2, "max_tokens": 100, "extra_body": {"ignore_eos": True}},
    {
        "temperature": 0,
        "max_tokens": 120,
        "presence_penalty": 1.2,
        "frequency_penalty": 0.7,
        "extra_body": {"ignore_eos": True},
    },
    AS_JSON,
]


def answers(cluster: RealCluster) -> bool:
    answer = cluster.openai.chat.completions.create(model=APART, messages=ASK, max_tokens=12, temperature=0)
    return "Paris" in (answer.choices[0].message.content or "")


def until(condition: Any, seconds: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.5)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_dead_or_stopped_prefill_engine_is_replaced_and_nobody_notices(
    cluster: RealCluster, how: signal.Signals
) -> None:
    before = cluster.workers(APART)["prefill"]
    os.kill(before["pids"]["engine"], how)
    assert answers(cluster)  # also where its prompt was given to what is stopped
    until(lambda: cluster.workers(APART)["prefill"]["state"] != "ready", 20)
    assert answers(cluster)  # the prompt is computed in place meanwhile
    until(lambda: cluster.workers(APART)["prefill"]["state"] == "ready", 120)
    after = cluster.workers(APART)["prefill"]
    assert after["pids"]["engine"] != before["pids"]["engine"]
    assert not _alive(before["pids"]["actor"])
    until(lambda: cluster.status()["ready"], 20)
    assert answers(cluster)


@dataclass
class Ask:
    """One way to ask, and what came of it so far."""

    fields: dict[str, Any]
    texts: dict[int, str] = field(default_factory=dict)
    chunks: int = 0
    ends: list[str] = field(default_factory=list)

    def run(self, cluster: RealCluster) -> Ask:
        """Streams an answer to its end."""
        for chunk in cluster.openai.chat.completions.create(model=APART, messages=STORY, stream=True, **self.fields):
            for choice in chunk.choices:
                self.texts[choice.index] = self.texts.get(choice.index, "") + (choice.delta.content or "")
                self.ends += [choice.finish_reason] if choice.finish_reason else []
            self.chunks += 1
        return self


def test_dead_decode_engine_is_replaced_and_its_streams_go_on_as_if_nothing_had_been(cluster: RealCluster) -> None:
    before = cluster.workers(APART)["decode"]
    whole = [Ask(fields).run(cluster) for fields in ASKS]
    again = [Ask(fields) for fields in ASKS]
    with ThreadPoolExecutor(len(ASKS)) as threads:
        streams = [threads.submit(ask.run, cluster) for ask in again]
        until(lambda: all(ask.chunks >= 6 for ask in again), 60)
        assert not any(ask.ends for ask in again), "too short to be caught in the act"
        os.kill(before["pids"]["engine"], signal.SIGKILL)
        for stream in streams:
            stream.result(200)
    for ask, expected in zip(again, whole, strict=True):
        assert ask.texts == expected.texts, ask.fields
        assert sorted(ask.ends) == sorted(expected.ends)
    json.loads(again[ASKS.index(AS_JSON)].texts[0])
    until(lambda: cluster.status()["ready"], 120)
    assert cluster.workers(APART)["decode"]["pids"]["engine"] != before["pids"]["engine"]
    assert answers(cluster)


def test_requests_flow_while_the_controller_is_away(cluster: RealCluster) -> None:
    status = cluster.status()
    pid = status["controller"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert answers(cluster)
    finally:
        os.kill(pid, signal.SIGCONT)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
