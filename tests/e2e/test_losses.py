"""Parts die; the cluster says so, mends itself, and requests go on. These run last: they disturb the shared cluster."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

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


def test_dead_decode_engine_is_replaced_and_its_stream_goes_on_there(cluster: RealCluster) -> None:
    before = cluster.workers(APART)["decode"]
    asked: dict[str, Any] = {"model": APART, "prompt": "Once upon a time", "max_tokens": 150, "temperature": 0}
    own = {"ignore_eos": True, "return_token_ids": True}
    whole = cluster.openai.completions.create(**asked, extra_body=own)
    stream = cluster.openai.completions.create(**asked, extra_body=own, stream=True)
    got = [next(stream) for _ in range(3)]
    os.kill(before["pids"]["engine"], signal.SIGKILL)
    got += stream
    ids = [token for chunk in got for token in (chunk.choices[0].model_extra or {})["token_ids"] or ()]
    assert ids == (whole.choices[0].model_extra or {})["token_ids"]
    assert "".join(chunk.choices[0].text for chunk in got) == whole.choices[0].text
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
