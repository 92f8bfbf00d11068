"""A start that failed says why in one line, found in what its processes wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.telemetry.output import own_root_cause, points_at_another, root_cause, write_output_to, written

NO_BLOCK_SIZE = "ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)])."
NO_WEIGHTS = "RuntimeError: Cannot find any model weights with `/models/m`"
AT = "at=core.py:1482:run_engine_core>otel.py:175:sync_wrapper"
SECOND = "2026-11-23T06:59:50.880Z"
PARENT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
RANKS = "Exception: WorkerProc initialization failed due to an exception elsewhere. See stack trace for root cause."
TRACE = ["Process EngineCore:", "Traceback (most recent call last):", '  File "a.py", line 3', "    raise ValueError("]


def logged(said: str, component: str = "vllm.v1.engine.core") -> str:
    return f'{SECOND} error {component} EngineCore failed to start. error="{said}" {AT}'


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        pytest.param([logged(NO_BLOCK_SIZE), *TRACE, NO_BLOCK_SIZE, PARENT], NO_BLOCK_SIZE, id="trace"),
        pytest.param([logged(NO_WEIGHTS), logged(RANKS), *TRACE, RANKS, PARENT], NO_WEIGHTS, id="rank's line"),
        pytest.param([logged(RANKS), *TRACE, RANKS, PARENT], "", id="only pointers"),
        pytest.param([f"{SECOND} info vllm.config.model Using max model len 512"], "", id="none"),
        pytest.param([NO_WEIGHTS, logged(PARENT, "worker.actor")], NO_WEIGHTS, id="own line"),
        pytest.param([], "", id="empty"),
    ],
)
def test_the_last_exception_that_points_at_no_other_is_the_cause(lines: list[str], cause: str) -> None:
    assert root_cause(lines) == cause


@pytest.mark.parametrize(("said", "points"), [(PARENT, True), (RANKS, True), (NO_BLOCK_SIZE, False)])
def test_what_only_points_at_another_is_told_apart(said: str, points: bool) -> None:
    assert points_at_another(said) is points


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """This process's own output goes there."""
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    write_output_to(path)
    try:
        yield
    finally:
        for descriptor, was in zip((1, 2), before, strict=True):
            os.dup2(was, descriptor)
            os.close(was)


def test_a_start_is_not_blamed_for_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "w.log"
    with logging_to(log):
        os.write(2, f"{NO_WEIGHTS}\n".encode())
        since = written()
        at_first = own_root_cause(since)
        os.write(1, f"{NO_BLOCK_SIZE}\n".encode())
        later = own_root_cause(since)
    assert (at_first, later) == ("", NO_BLOCK_SIZE)
    assert log.read_text() == f"{NO_WEIGHTS}\n{NO_BLOCK_SIZE}\n"


def test_output_that_is_no_file_tells_of_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with logging_to(tmp_path / "w.log"):
        os.dup2(writer, 2)
        os.write(2, f"{NO_WEIGHTS}\n".encode())
        told = written(), own_root_cause(0)
    os.close(reader)
    os.close(writer)
    assert told == (0, "")
