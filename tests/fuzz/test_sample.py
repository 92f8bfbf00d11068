"""A sample of ``make fuzz``, the same one each time, and that its judge knows what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz import engine, judge
from tests.fuzz.aim import Aim, aimed
from tests.fuzz.bystander import events
from tests.fuzz.engine import Surface, fuzz
from tests.fuzz.surfaces import SHARES, surfaces

CASES = {"schema": 40, "http": 250, "raw": 400, "rpc": 200, "fleet": 100, "frames": 120, "rogue": 10}
SEED = 1


@pytest.fixture(scope="module")
def aim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aim]:
    with aimed(tmp_path_factory.mktemp("fuzz") / "target.log") as found:
        yield found


@pytest.fixture(scope="module")
def makers(aim: Aim) -> dict[str, Callable[[], Surface]]:
    return surfaces(aim)


@pytest.mark.parametrize("name", list(SHARES))  # the order matters: the last one takes away a model's good worker
def test_nothing_is_untyped_and_nothing_is_left(aim: Aim, makers: dict[str, Callable[[], Surface]], name: str) -> None:
    surface, before = makers[name](), aim.quiet()
    text = [piece for _, piece in events(aim.http)]
    tally = fuzz(surface, aim, range(SEED, SEED + 10), CASES[name])
    assert not tally.findings, tally.findings[0]
    assert tally.cases >= CASES[name]
    assert [piece for _, piece in events(aim.http)] == text, "a bystander's tokens changed"
    after = aim.quiet()
    assert not after["left"]
    assert not after["broken"]
    assert after["tasks"] <= before["tasks"] + 80
    assert after["rss"] < before["rss"] + (200 << 20)


def test_a_prompt_of_a_million_tokens_is_refused_at_once_and_holds_nobody_up(aim: Aim) -> None:
    from tests.fuzz.http_cases import Client, Request

    command = [sys.executable, "-m", "tests.fuzz.bystander", aim.http]
    bystander = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    client = Client(aim)
    try:
        for prompt in (b'"' + b"a " * 1_000_000 + b'"', b"[" + b"5," * 1_000_000 + b"5]"):
            body = b'{"model":"together","max_tokens":1,"prompt":' + prompt + b"}"
            status, kind, answer = client.send(Request("/v1/completions", body))
            assert judge.http("/v1/completions", status, kind, answer) == "400 invalid_request"
            status, kind, answer = client.send(Request("/tokenize", body))
            judge.http("/tokenize", status, kind, answer)
    finally:
        said, _ = bystander.communicate("end\n", timeout=60)
    seen = json.loads(said)
    assert not seen["wrong"], seen["example"]
    assert seen["longest_gap"] < 5.0, "generous: a busy machine has gaps of its own"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"error": {"message": "x", "type": "server_error", "param": null, "code": "internal"}}'),
        (500, b"Internal Server Error"),
        (400, b'{"detail": "no"}'),
        (400, b'{"error": {"message": "x", "type": "y", "param": null, "code": 400}}'),
        (418, b"{}"),
        (200, b"{"),
    ],
)
def test_the_judge_lets_nothing_through_that_is_not_documented(status: int, body: bytes) -> None:
    with pytest.raises(judge.Untyped):
        judge.http("/v1/completions", status, "application/json", body)


def test_a_stream_goes_on_after_no_error() -> None:
    error = b'data: {"error": {"message": "x", "type": "y", "code": "worker_lost"}}\n\n'
    assert judge.http("/x", 200, "text/event-stream", error) == "200 stream worker_lost"
    with pytest.raises(judge.Untyped):
        judge.http("/x", 200, "text/event-stream", error + b'data: {"choices": []}\n\n')


class Deaf:
    """A target that logs an error whenever it is sent the worst number."""

    def __init__(self) -> None:
        self.errors_logged = 0

    def alive(self) -> bool:
        return True

    def errors(self) -> dict[str, Any]:
        return {"errors": self.errors_logged, "said": ["broke"] * self.errors_logged, "broken": []}


def test_a_finding_is_the_smallest_case_that_has_it() -> None:
    target = Deaf()

    def run(number: int) -> str:
        target.errors_logged += number >= 1000
        return "fine"

    tally = fuzz(Surface("numbers", st.integers(0, 5000), run), target, range(1), 200)  # type: ignore[arg-type]
    (finding,) = tally.findings
    assert (finding.case, finding.round_seed) == ("1000", 0)
    assert "broke" in finding.error


def test_a_smaller_case_is_not_looked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    target, tried = Deaf(), []
    monkeypatch.setattr(engine, "SHRINK_SECONDS", 0.0)

    def run(number: int) -> str:
        tried.append(number)
        target.errors_logged += number >= 1000
        return "fine"

    tally = fuzz(Surface("numbers", st.integers(0, 5000), run), target, range(1), 200)  # type: ignore[arg-type]
    (finding,) = tally.findings
    assert finding.case == str(tried[-1])
    assert [number >= 1000 for number in tried].count(True) == 1
    assert json.loads(json.dumps(tally.report()))["outcomes"] == dict(tally.outcomes)


def test_a_case_that_hangs_is_a_finding_and_not_tried_again() -> None:
    tried = []

    def run(number: int) -> str:
        tried.append(number)
        raise TimeoutError

    tally = fuzz(Surface("slow", st.integers(), run), Deaf(), range(1), 200)  # type: ignore[arg-type]
    assert len(tally.findings) == 1
    assert len(tried) == 1
