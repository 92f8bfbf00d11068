"""``segue batch`` as a program, against a real gateway with mock engines: stopped, killed, refused, gone on with."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.cli.batch_calls import Calls
from orchestrator.cli.batch_journal import Busy, Journal
from orchestrator.cli.batch_lines import survey
from orchestrator.cli.main import main
from orchestrator.core import pace
from orchestrator.core.errors import ClusterUnreachable, SegueError
from orchestrator.core.spec import AdmissionSpec, Role
from orchestrator.core.types import RequestReport
from tests.gateway.support import Stack, cluster, model, running
from tests.ports import free_ports

SECONDS = 60.0
LINES = 200


class Place:
    """A gateway, a batch for it, and what the gateway computed, by line."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.journal = folder / "out.jsonl.journal"
        self.finished: Counter[str] = Counter()
        metrics = stack.gateway.driver._metrics
        counted = metrics.request_finished

        def noted(report: RequestReport) -> None:
            if report.outcome == "finished":
                self.finished[re.search(r"batch_req_[0-9a-f]{24}", report.request_id)[0]] += 1
            counted(report)

        metrics.request_finished = noted

    def write(self, *lines: Any) -> None:
        self.source.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))

    async def start(self, *words: str, url: str = "") -> Process:
        where = ["--gateway", url or self.stack.url]
        command = [sys.executable, "-m", "orchestrator.cli.main", "batch", str(self.source), str(self.output), *where]
        return await asyncio.create_subprocess_exec(*command, *words, stdout=PIPE, stderr=PIPE)

    async def run(self, *words: str, url: str = "") -> tuple[int | None, str, str]:
        process = await self.start(*words, url=url)
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        return process.returncode, out.decode(), err.decode()

    def kept(self) -> int:
        return max(0, self.journal.read_bytes().count(b"\n") - 1) if self.journal.exists() else 0

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not true():  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]


def asked(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": f"Tell of {name}", "max_tokens": 8, "ignore_eos": True, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def many() -> list[dict[str, Any]]:
    return [asked(f"line-{number}", max_tokens=4 + number % 9) for number in range(LINES)]


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with running(cluster(model("m", "tiny:llama", Role.SERVE)), step_seconds=0.01) as stack:
        yield Place(stack, tmp_path)
        await stack.quiet()


def assert_complete(place: Place) -> None:
    results = place.results()
    assert [line["custom_id"] for line in results] == [f"line-{number}" for number in range(LINES)]
    assert {line["response"]["status_code"] for line in results} == {200}
    tokens = [line["response"]["body"]["usage"]["completion_tokens"] for line in results]
    assert tokens == [4 + number % 9 for number in range(LINES)]
    assert sorted(path.name for path in place.output.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


async def test_stopped_half_way_and_gone_on_with_each_line_is_computed_once(place: Place) -> None:
    place.write(*many())
    process = await place.start("--concurrency", "8")
    await place.until(lambda: place.kept() >= LINES // 3)
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 130
    assert f"go on: segue batch {place.source} {place.output}" in said.decode()
    assert LINES // 3 <= place.kept() < LINES
    assert not place.output.exists()
    earlier = place.kept()
    code, out, said_then = await place.run("--concurrency", "8", "--json")
    assert code == 0, said_then
    summary = json.loads(out)
    assert (summary["complete"], summary["done"], summary["earlier"]) == (True, LINES, earlier)
    assert summary["output_tokens"] == sum(4 + number % 9 for number in range(LINES))
    assert_complete(place)
    assert set(place.finished.values()) == {1}
    assert len(place.finished) == LINES


async def test_killed_twice_at_any_point_only_what_was_under_way_is_computed_again(place: Place) -> None:
    place.write(*many())
    for part in (LINES // 4, LINES // 2):
        process = await place.start("--concurrency", "8")
        await place.until(lambda part=part: place.kept() >= part)
        process.kill()
        await process.communicate()
    code, _, said = await place.run()
    assert code == 0, said
    assert_complete(place)
    assert len(place.finished) == LINES
    assert sum(place.finished.values()) <= LINES + 2 * 8


async def test_errors_have_a_line_each_and_are_counted(place: Place) -> None:
    place.write(
        asked("one"),
        "nonsense",
        asked("long", prompt=[5] * 600),
        asked("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}]),
        asked("vector", "/v1/embeddings", input="x"),
        asked("stream", stream=True),
    )
    code, out, said = await place.run("--model", "m")
    assert code == 1, said
    one, nonsense, long, chat, vector, stream = place.results()
    assert (one["error"], one["response"]["body"]["model"]) == (None, "m")
    assert one["response"]["request_id"] == one["id"]
    assert (nonsense["custom_id"], nonsense["response"], nonsense["error"]["code"]) == (None, None, "invalid_line")
    assert (long["response"]["status_code"], long["error"]["message"] != "") == (400, True)
    assert chat["response"]["body"]["choices"][0]["message"]["content"]
    assert (vector["response"]["status_code"], vector["error"]["code"]) == (400, "unsupported")
    assert "stream" in stream["error"]["message"]
    assert re.search(r"failed: invalid_line +2\n", out)
    assert re.search(r"failed: 400 unsupported +1\n", out)


async def test_what_can_not_be_begun_leaves_nothing_and_can_be_put_right(place: Place) -> None:
    place.write(asked("one", model="gpt"))
    code, _, said = await place.run()
    assert (code, "line 1: no model 'gpt' is served here (models here: m; --model" in said) == (1, True), said
    assert not place.journal.exists()
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    code, _, said = await place.run("--model", "m", url=nowhere)
    assert (code, "no gateway answers" in said) == (3, True), said
    assert (await place.run("--model", "m"))[0] == 0
    code, _, said = await place.run("--model", "m")
    assert (code, "results are never overwritten" in said) == (2, True), said


async def test_another_input_in_mid_run_and_a_second_process_are_refused(place: Place) -> None:
    place.write(*many())
    process = await place.start("--concurrency", "4")
    await place.until(lambda: place.kept() >= 5)
    code, _, said = await place.run()
    assert (code, "another segue batch is at it" in said) == (1, True), said
    process.kill()
    await process.communicate()
    place.write(*many()[:-1])
    code, _, said = await place.run()
    assert (code, "not the file that this output was begun with" in said) == (2, True), said
    place.write(*many())
    assert (await place.run())[0] == 0
    assert_complete(place)


async def test_a_cluster_that_refuses_gets_less_at_once_and_everything_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "UNKNOWN_RETRY_SECONDS", 1.0)
    monkeypatch.setattr(pace, "MOST_RETRY_SECONDS", 1.0)
    spec = cluster(model("m", "tiny:llama", Role.SERVE), admission=AdmissionSpec(max_queued_requests=1))
    async with running(spec, step_seconds=0.01, max_num_seqs=2) as stack:
        place = Place(stack, tmp_path)
        place.write(*(asked(f"line-{number}") for number in range(40)))
        code, out, said = await place.run("--concurrency", "32", "--json")
        assert code == 0, said
        assert [line["custom_id"] for line in place.results()] == [f"line-{number}" for number in range(40)]
        assert (json.loads(out)["done"], json.loads(out)["retries"] > 0) == (40, True)
        assert (len(place.finished), set(place.finished.values())) == (40, {1})


def test_in_a_job_results_do_not_go_where_ray_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(folder)
    Path("in.jsonl").write_text(json.dumps(asked("one")))
    assert main(["batch", "in.jsonl", "out.jsonl"]) == 2
    assert "out.jsonl: it is in the job's own folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


async def test_a_cluster_that_is_gone_ends_it() -> None:
    calls = Calls(f"http://127.0.0.1:{free_ports(1)[0]}", 2, patience=0.3)
    try:
        with pytest.raises(ClusterUnreachable, match=r"no request got an answer for 0\.3 s \(last: no connection\)"):
            await asyncio.wait_for(calls.ask("/v1/completions", b"{}", "r"), SECONDS)
    finally:
        await calls.close()


async def test_a_disk_that_is_full_is_told_and_nobody_waits_for_it(tmp_path: Path) -> None:
    lines = [json.dumps(asked(name)).encode() + b"\n" for name in "ab"]
    journal = Journal(tmp_path / "out", survey(lines, None), None, lambda _: None)
    with pytest.raises(Busy):
        Journal(tmp_path / "out", survey(lines, None), None, lambda _: None)
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: ASYNC230, SIM115
    whole, journal._file = journal._file, full
    with pytest.raises(SegueError, match="results can't be kept: No space left on device"):
        await asyncio.wait_for(asyncio.gather(*(journal.add(number, {}) for number in (1, 2))), SECONDS)
    full.close()
    whole.close()
