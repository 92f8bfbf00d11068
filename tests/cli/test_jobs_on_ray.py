"""``segue`` in Ray jobs, submitted through the dashboard of a Ray that others started; only the engines are mocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.test_end_to_end import START_SECONDS, free_ports, segue, wait_until
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


def test_up_a_prompt_stop_and_nothing_left(ray: RayJobs, tmp_path: Path) -> None:
    place = Place(tmp_path, "one")
    job = ray.submit(place.folder, "up", "segue.yaml", "--attach", name="one")
    is_up(ray, job)
    assert place.ask() == 5
    assert on_ray(ray, "one") == 0
    said = ray.stop(job)
    assert "\r" not in said
    assert "\x1b" not in said
    wait_until(lambda: on_ray(ray, "one") == 3, "the cluster to be gone")
    assert not place.answers()
