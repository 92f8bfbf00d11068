"""vLLM's logging is ours: in a gateway without clients' words, in an engine's processes without requests."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.telemetry import foreign, logs

ROOT = Path(__file__).parents[2]


def test_once_clients_write_foreign_lines_have_no_words(lines: io.StringIO) -> None:
    library = logging.getLogger("vllm.entrypoints.anything")
    library.warning("starting with %s", "words")
    foreign.hush()
    library.error("Error: no tool named %s", "xylophone", exc_info=ValueError("xylophone"))
    logging.getLogger("asyncio").error("Task exception was never retrieved: xylophone")
    logs.events("gateway").info("still_heard", worker="w1")

    first, second, third, fourth = lines.getvalue().splitlines()
    assert first.endswith("warning vllm.entrypoints.anything starting with words")
    assert " error vllm.entrypoints.anything at=test_foreign.py:" in second
    assert second.endswith("error=ValueError")
    assert "xylophone" not in second + third
    assert fourth.endswith("still_heard worker=w1")


def test_vllms_own_handler_goes_and_its_info_with_it(lines: io.StringIO) -> None:
    library, own = logging.getLogger("vllm"), io.StringIO()
    library.addHandler(logging.StreamHandler(own))
    library.setLevel(logging.DEBUG)
    library.propagate = False
    logs.setup("debug", lines)
    logging.getLogger("vllm.v1.engine").info("request xylophone")
    logging.getLogger("vllm.v1.engine").warning("heard")

    assert own.getvalue() == ""
    assert [line.rsplit(" ", 1)[1] for line in lines.getvalue().splitlines()] == ["heard"]


@pytest.mark.parametrize(("asked", "level"), [("debug", "INFO"), ("NOTSET", "INFO"), ("ERROR", "ERROR")])
def test_whole_requests_are_not_to_be_logged(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch, asked: str, level: str
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", asked)
    logs.setup("info", lines)

    assert os.environ["VLLM_LOGGING_LEVEL"] == level
    assert ("vllm_log_level_pinned level=INFO" in lines.getvalue()) is (level != asked)


_ENGINE = """
import logging
from orchestrator.telemetry import logs
logs.setup("info", engine=True)
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging, init_logger
configure_logging(LoggingConfig())  # as each process of an engine does
log = init_logger("vllm.v1.engine.core")
log.info("init engine took %d s", 3)
log.debug("request xylophone")
init_logger("vllm.logging_utils.dump_input").error("Dumping scheduler output: %s", "xylophone")
def say(message, words):
    try:
        raise ValueError(words)
    except ValueError:
        log.exception(message)
say("EngineCore encountered a fatal error.", "xylophone")
say("EngineCore failed to start.", "no memory")
"""


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_an_engine_tells_of_its_start_and_not_of_requests(level: str) -> None:
    environ = {**os.environ, "VLLM_LOGGING_LEVEL": level}
    ran = subprocess.run(
        [sys.executable, "-c", _ENGINE], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    said = ran.stdout + ran.stderr
    assert "info vllm.v1.engine.core init engine took 3 s" in said
    assert 'EngineCore encountered a fatal error. error="ValueError" at=' in said
    assert 'EngineCore failed to start. error="ValueError: no memory" at=' in said
    assert "xylophone" not in said
