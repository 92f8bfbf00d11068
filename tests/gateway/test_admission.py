"""What clients see of a cluster that has no room: who waits, who goes first, who is told to come back, and how."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from orchestrator.core.holdings import TurnReason
from tests.gateway.crowd import LIMITS, ROUTES, TEXT, TURNS, Crowd, full, names, occupied, placements, until_queued
from tests.gateway.support import Stack


def told(response: httpx.Response, path: str) -> dict[str, Any]:
    """A refusal's error, in the shape of its API; checks what all refusals have."""
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body.get("type") == "error") is (path == "/v1/messages")
    return dict(body["error"])


async def _never(*_: object) -> None:
    raise AssertionError("the front end was asked")


class TestRefusals:
    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("path", ROUTES)
    async def test_full_cluster_is_503_before_anything_is_streamed(
        self, narrow: Stack, path: str, streams: bool
    ) -> None:
        async with occupied(narrow):
            crowd = await full(narrow)
            response = await narrow.http.post(
                path, json={**ROUTES[path], "stream": streams}, headers={"x-segue-tenant": "flood"}
            )
            assert response.status_code == 503
            error = told(response, path)
            assert "the cluster's limit" in error["message"]
            assert error["type"] == ("overloaded_error" if path == "/v1/messages" else "server_error")
            if path != "/v1/messages":
                assert error["code"] == "cluster_full"
        assert {each.status_code for each in await crowd.all()} == {200}

    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize(
        ("path", "names"),
        [
            ("/v1/chat/completions", {"user": "small"}),
            ("/v1/completions", {"user": "small"}),
            ("/v1/responses", {"safety_identifier": "small"}),
            ("/v1/messages", {"metadata": {"user_id": "small"}}),
        ],
    )
    async def test_tenant_over_its_own_limit_is_429(
        self, narrow: Stack, path: str, names: dict[str, Any], streams: bool
    ) -> None:
        async with occupied(narrow):
            crowd = Crowd(narrow)
            await crowd.joins("first", "small")
            response = await narrow.http.post(path, json={**ROUTES[path], **names, "stream": streams})
            assert response.status_code == 429
            error = told(response, path)
            assert "your tenant" in error["message"]
            assert error["type"] == "rate_limit_error"
            await crowd.joins("other", "gold")
        assert {each.status_code for each in await crowd.all()} == {200}

    @pytest.mark.parametrize("path", ROUTES)
    async def test_who_would_be_turned_away_anyway_costs_no_reading_of_its_request(
        self, narrow: Stack, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with occupied(narrow):
            crowd = Crowd(narrow)
            await crowd.joins("first", "small")
            front = narrow.gateway.front("m")
            monkeypatch.setattr(front, "app", _never)
            response = await narrow.http.post(path, json=ROUTES[path], headers={"x-segue-tenant": "small"})
            monkeypatch.undo()
            assert response.status_code == 429
            assert "your tenant" in told(response, path)["message"]
            counted = await narrow.http.post("/tokenize", json={"model": "m", "prompt": "Hello there"})
            assert counted.status_code == 200
        assert {each.status_code for each in await crowd.all()} == {200}

    @pytest.mark.parametrize("streams", [False, True])
    async def test_one_that_waits_gives_way_to_a_tenant_under_its_share(self, narrow: Stack, streams: bool) -> None:
        async with occupied(narrow):
            crowd = Crowd(narrow)
            for i in range(LIMITS.max_queued_requests):
                await crowd.joins(f"flood{i}", "flood", path="/v1/chat/completions", stream=streams)
            await crowd.joins("late", "gold")
            gone = await crowd.tasks[LIMITS.max_queued_requests - 1]
            assert gone.status_code == 429
            assert "more than its share" in told(gone, "/v1/chat/completions")["message"]
        responses = await crowd.all()
        assert [each.status_code for each in responses] == [200, 200, 200, 429, 200]

    async def test_own_requests_over_the_tokens_that_a_tenant_may_have_waiting(self, narrow: Stack) -> None:
        async with occupied(narrow):
            response = await narrow.http.post("/v1/completions", json=TEXT, headers={"x-segue-tenant": "large"})
            assert response.status_code == 429

    @pytest.mark.parametrize("path", ROUTES)
    async def test_after_the_first_token_an_error_comes_in_the_stream(self, narrow: Stack, path: str) -> None:
        """Status and headers are out by then; the last event says it in the shape of the API."""
        length = {name: 300 for name in ROUTES[path] if "max" in name}
        body = {**ROUTES[path], **length, "stream": True}
        events = []
        headers = {"x-request-timeout": "0.7"}
        async with narrow.http.stream("POST", path, json=body, headers=headers, timeout=10) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
        assert len(events) > 3
        assert "deadline" in events[-1]["error"]["message"]
        if path != "/v1/messages":
            assert events[-1]["error"]["code"] == "deadline_exceeded"

    async def test_refusals_are_counted_by_reason_and_queued_requests_by_known_tenants(self, narrow: Stack) -> None:
        async def metric(name: str) -> dict[str, float]:
            lines = [line for line in (await narrow.http.get("/metrics")).text.splitlines() if line.startswith(name)]
            return {line.split('"')[-2]: float(line.split()[-1]) for line in lines}

        before = await metric("segue_turned_away_total")
        assert set(before) == set(TurnReason)
        async with occupied(narrow):
            crowd = await full(narrow)
            await crowd.joins("more", "flood")
            await crowd.joins("gold", "gold")
            assert await metric("segue_queued_requests") == {"gold": 1, "small": 0, "large": 0, "other": 3}
            after = await metric("segue_turned_away_total")
        assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
            "cluster_requests": 1,
            "displaced": 1,
        }
        await crowd.all()


class TestTurns:
    @pytest.mark.source
    async def test_a_flood_costs_another_tenant_one_turn(self, narrow: Stack) -> None:
        with placements(narrow) as placed:
            async with occupied(narrow):
                crowd = Crowd(narrow)
                for i in range(3):
                    await crowd.joins(f"flood{i}", "flood")
                await crowd.joins("late", "gold")
            await crowd.all()
        assert "late" in " ".join(placed[:2])

    @pytest.mark.source
    async def test_priorities_order_a_tenants_requests_whoever_says_them(self, narrow: Stack) -> None:
        with placements(narrow) as placed:
            async with occupied(narrow):
                crowd = Crowd(narrow)
                await crowd.joins("plain")
                await crowd.joins("field", priority=-1)
                await crowd.joins("header", priority=5, headers={"x-segue-priority": "-2"})
                await crowd.joins("in-chat", path="/v1/chat/completions", priority=1)
            assert {each.status_code for each in await crowd.all()} == {200}
        assert names(placed, crowd.answered) == ["header", "field", "plain", "in-chat"]

    async def test_one_that_is_cancelled_while_it_waits_leaves(self, narrow: Stack) -> None:
        async with occupied(narrow):
            crowd = Crowd(narrow)
            await crowd.joins("a")
            crowd.tasks[0].cancel()
            await until_queued(narrow, 0)


class TestDeadlines:
    @pytest.mark.parametrize("streams", [False, True])
    async def test_one_that_waits_leaves_by_its_deadline(self, narrow: Stack, streams: bool) -> None:
        async with occupied(narrow):
            began = time.monotonic()
            response = await narrow.http.post(
                "/v1/chat/completions", json={**TURNS, "stream": streams}, headers={"x-request-timeout": "0.3"}
            )
            assert 0.3 <= time.monotonic() - began < 2
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "deadline_exceeded"

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("x-request-timeout", "soon"),
            ("x-request-timeout", "0"),
            ("x-request-timeout", "nan"),
            ("x-request-timeout", "1e9"),
            ("x-segue-priority", "high"),
            ("x-segue-priority", "1e3"),
            ("x-segue-priority", str(1 << 31)),
            ("x-segue-tenant", "t" * 129),
            ("x-segue-tenant", "a\u00a0b"),
            ("x-segue-session", "s" * 129),
        ],
    )
    async def test_a_header_that_can_not_be_meant_is_named(self, narrow: Stack, header: str, value: str) -> None:
        response = await narrow.http.post("/v1/completions", json=TEXT, headers={header: value.encode()})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"{header}: ")

    async def test_two_tenants_are_none(self, narrow: Stack) -> None:
        headers = [("x-segue-tenant", "a"), ("x-segue-tenant", "b")]
        response = await narrow.http.post("/v1/completions", json=TEXT, headers=headers)
        assert response.status_code == 400

    @pytest.mark.parametrize("user", ["x" * 1000, "line\nbreak", "", "   ", 7, None])
    async def test_other_apis_fields_are_no_reason_to_refuse(self, narrow: Stack, user: object) -> None:
        """Such clients know nothing of tenants; a user's id of theirs may be anything that vLLM takes."""
        body = json.dumps({**TEXT, "user": user, "metadata": "?", "safety_identifier": 3}).encode()
        response = await narrow.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == (400 if user == 7 else 200), response.text
