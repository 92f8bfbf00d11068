"""A prefill and a decode worker, behind the real session protocol: mock ones, or vLLM engines shared by the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.workers.planned import WEIGHED
from tests.workers.support import TINY_ENGINE, Pair, WorkerProcess, engine_process, mock_worker

MOCK = {"block_size": 32, "kv_blocks": 511, "max_num_seqs": 8, "max_model_len": 512, "prefill_tokens_per_second": 1e5}


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    """Two vLLM engines of the tiny model, in processes of their own."""
    logs = tmp_path_factory.mktemp("engine-logs")
    engine = {**TINY_ENGINE, **WEIGHED}
    # Started together: most of a start is waiting for imports.
    with (
        engine_process("prefill", logs, engine=engine) as prefill,
        engine_process("decode", logs, engine=engine) as decode,
    ):
        yield prefill.ready(), decode.ready()


@pytest.fixture(params=["mock", pytest.param("vllm", marks=pytest.mark.engine)])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Both kinds of engine have to pass whatever uses this, so that the mock can't lie."""
    if request.param == "vllm":
        prefill, decode = request.getfixturevalue("engines")
        yield Pair(prefill.address, decode.address)
        return
    async with mock_worker("prefill", **MOCK) as first, mock_worker("decode", **MOCK) as second:
        yield Pair(first.address, second.address)
