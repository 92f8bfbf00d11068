"""Parts die; the cluster says so, mends itself, and requests go on. These run last: they disturb the shared cluster."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import openai
import pytest

from tests.e2e.conftest import APART, RealCluster

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(300)]

ASK = [{"role": "user", "content": "What is the capital of France?"}]


def answers(cluster: RealCluster) -> bool:
    answer = cluster.openai.chat.completions.create(model=APART, messages=ASK, max_tokens=12, temperature=0)
    return "Paris" in (answer.choices[0].message.content or "")


def until(condition: Any, seconds: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.5)


def test_dead_prefill_engine_is_replaced_and_nobody_notices(cluster: RealCluster) -> None:
    before = cluster.workers(APART)["prefill"]
    os.kill(before["pids"]["engine"], signal.SIGKILL)
    until(lambda: cluster.workers(APART)["prefill"]["state"] != "ready", 10)
    assert answers(cluster)  # the prompt is computed in place meanwhile
    until(lambda: cluster.workers(APART)["prefill"]["state"] == "ready", 120)
    after = cluster.workers(APART)["prefill"]
    assert after["pids"]["engine"] != before["pids"]["engine"]
    assert not _alive(before["pids"]["actor"])
    until(lambda: cluster.status()["ready"], 20)
    assert answers(cluster)


def test_dead_decode_engine_ends_its_stream_with_a_typed_error_and_is_replaced(cluster: RealCluster) -> None:
    before = cluster.workers(APART)["decode"]
    stream = cluster.openai.completions.create(
        model=APART, prompt="Once upon a time", max_tokens=800, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(stream)
    os.kill(before["pids"]["engine"], signal.SIGKILL)
    with pytest.raises(openai.APIError) as lost:
        list(stream)
    assert f"{APART}-decode" in str(lost.value)
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
