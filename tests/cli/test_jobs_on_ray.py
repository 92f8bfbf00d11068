"""``segue`` in Ray jobs, submitted through the dashboard of a Ray that others started; only the engines are mocks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from orchestrator.cli.run_folder import RunFolder
from tests.cli.test_end_to_end import START_SECONDS, segue, wait_until
from tests.ports import free_ports
from tests.ray_jobs import RayJobs, ray_jobs

pytestmark = pytest.mark.ray

CONFIG = """
cluster: {{name: {name}}}
gateway: {{http: "127.0.0.1:{http}", grpc: "127.0.0.1:{grpc}"}}
controller: {{listen: "127.0.0.1:{controller}", drain_timeout: 20}}
models:
  - name: tiny
    source: "tiny:llama"
    pools:
      serve: {{replicas: 1, backend: mock, engine: {{step_seconds: 0.02}}}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests here: Ray's processes know no other."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ray(home: Path) -> Iterator[RayJobs]:
    before = os.environ.get("SEGUE_HOME")
    os.environ["SEGUE_HOME"] = str(home)
    with ray_jobs() as jobs:
        kept = {key: os.environ.get(key) for key in jobs.environment}
        os.environ.update(jobs.environment)
        yield jobs
        for key, value in (kept | {"SEGUE_HOME": before}).items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class Place:
    """A folder with a configuration that is to be somebody's working directory."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.name = name
        self.http, self.grpc, self.controller = free_ports(3)
        self.folder.mkdir()
        self.config = self.folder / "segue.yaml"
        self.config.write_text(CONFIG.format(name=name, http=self.http, grpc=self.grpc, controller=self.controller))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def ask(self, tokens: int = 5) -> int:
        body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
        return int(answer.raise_for_status().json()["usage"]["completion_tokens"])

    def running(self) -> bool:
        return self._metric("segue_running_requests") > 0

    def finished(self) -> int:
        return self._metric('segue_requests_total{.*outcome="finished"')

    def _metric(self, name: str) -> int:
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if re.match(name, line))

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False


def is_up(ray: RayJobs, job: str) -> None:
    wait_until(lambda: "Stop it:" in ray.output(job) or ray.status(job) in ("FAILED", "STOPPED"), "up", START_SECONDS)
    assert "Stop it:" in ray.output(job), ray.output(job)


def on_ray(ray: RayJobs, name: str) -> int:
    return segue("status", "--address", ray.address, "--name", name, "--json", seconds=60).returncode


def is_gone(ray: RayJobs, place: Place) -> bool:
    return not place.answers() and on_ray(ray, place.name) == 3


def test_up_a_prompt_stop_and_nothing_left(ray: RayJobs, tmp_path: Path) -> None:
    """Ray kills a job 3 s after it told it to stop: what is under way then is finished all the same."""
    place = Place(tmp_path, "one")
    job = ray.submit(place.folder, "up", "segue.yaml", "--attach", name="one")
    is_up(ray, job)
    assert place.ask() == 5
    assert on_ray(ray, "one") == 0
    with ThreadPoolExecutor() as aside:
        long = aside.submit(place.ask, 450)
        wait_until(lambda: place.running(), "the request to run")
        ray.stop(job)
        assert ray.status(job) == "STOPPED"
        assert long.result() == 450
    wait_until(lambda: "cluster one is down" in ray.output(job), "the guard of what owned the cluster", START_SECONDS)
    assert is_gone(ray, place)
    said = ray.output(job)
    assert "what owned cluster one was killed" in said
    assert not set("\r\x1b") & set(said)
    assert not RunFolder.of("one").record_path.exists()


def test_clusters_live_side_by_side_and_one_that_is_kept_stays_until_it_is_taken_down(
    ray: RayJobs, tmp_path: Path
) -> None:
    kept, other = Place(tmp_path, "kept"), Place(tmp_path, "other")
    first = ray.submit(kept.folder, "up", "segue.yaml", "--attach", "--keep", "--detach", name="kept-1")
    attached = ray.submit(other.folder, "up", "segue.yaml", "--attach", name="other-1")
    wait_until(lambda: ray.status(first) in ("SUCCEEDED", "FAILED"), "the job to end", START_SECONDS)
    assert ray.status(first) == "SUCCEEDED", ray.output(first)
    is_up(ray, attached)
    assert (kept.ask(), other.ask()) == (5, 5)
    assert segue("down", "--address", ray.address, "--name", "other", seconds=60).returncode == 0
    wait_until(lambda: ray.status(attached) == "SUCCEEDED", "the job to notice", START_SECONDS)
    assert is_gone(ray, other)

    again = ray.submit(kept.folder, "up", "segue.yaml", "--attach", "--keep", name="kept-2")
    is_up(ray, again)
    assert "found running" in ray.output(again)
    ray.stop(again)
    assert kept.ask() == 5
    batch_half_way_and_on(ray, kept, tmp_path)

    kept.config.write_text(kept.config.read_text().replace("0.02", "0.03"))
    changed = ray.submit(kept.folder, "up", "segue.yaml", "--attach", "--keep", name="kept-3")
    wait_until(lambda: ray.status(changed) == "FAILED", "the job to be refused", START_SECONDS)
    assert "runs on this Ray, with another configuration" in ray.output(changed)
    assert kept.ask() == 5
    down = segue("down", "--address", ray.address, "--name", "kept", seconds=60)
    assert (down.returncode, is_gone(ray, kept)) == (0, True), down.stdout + down.stderr


def test_what_the_options_of_up_opened_becomes_what_its_file_says_then(ray: RayJobs, tmp_path: Path) -> None:
    """As the Helm chart starts it: kept, open to the network, and without gateways of its own."""
    place = Place(tmp_path, "opened")
    place.config.write_text(
        place.config.read_text().replace("drain_timeout", "rollout: {health_seconds: 1}, drain_timeout")
    )
    words = ("up", "segue.yaml", "--attach", "--keep", "--no-gateways", "--bind", "node")
    is_up(ray, first := ray.submit(place.folder, *words, name="opened-1"))
    ray.stop(first)
    place.config.write_text(place.config.read_text().replace("0.02", "0.03"))
    upgraded = segue("upgrade", str(place.config), "--address", ray.address, seconds=START_SECONDS)
    assert upgraded.returncode == 0, upgraded.stdout + upgraded.stderr
    assert "upgrade: done" in upgraded.stdout
    is_up(ray, again := ray.submit(place.folder, *words, name="opened-2"))
    assert "found running" in ray.output(again)
    ray.stop(again)
    down = segue("down", "--address", ray.address, "--name", "opened", seconds=60)
    assert (down.returncode, on_ray(ray, "opened")) == (0, 3), down.stdout + down.stderr


def batch_half_way_and_on(ray: RayJobs, place: Place, folder: Path) -> None:
    """200 lines, stopped by Ray in their middle."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    journal = folder / "out.jsonl.journal"
    body = {"model": "gpt", "max_tokens": 8, "ignore_eos": True}
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body | {"prompt": [number]}}
        for number in range(200)
    ]
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before = place.finished()
    words = ["batch", str(source), str(output), "--model", "tiny", "--name", place.name, "--concurrency", "4"]
    first = ray.submit(place.folder, *words, name="batch-1")
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 60, "a part of it", START_SECONDS)
    said = ray.stop(first)
    assert ray.status(first) == "STOPPED"
    done = journal.read_bytes().count(b"\n") - 1
    assert f"stopped: {done} of 200 done" in said
    assert 60 <= done < 200
    assert not output.exists()
    second = ray.submit(place.folder, *words, name="batch-2")
    wait_until(lambda: ray.status(second) in ("SUCCEEDED", "FAILED"), "the rest of it", START_SECONDS)
    assert ray.status(second) == "SUCCEEDED", ray.output(second)
    assert f"goes on: {done} of 200 done" in ray.output(second)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["custom_id"] for line in results] == [line["custom_id"] for line in lines]
    assert {line["response"]["body"]["usage"]["completion_tokens"] for line in results} == {8}
    assert not journal.exists()
    assert place.finished() - before == 200  # those under way when it was stopped had the time to end
