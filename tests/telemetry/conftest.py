from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.telemetry import foreign, logs, tracing


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """This process records its spans here."""
    exporter = InMemorySpanExporter()
    tracing.init("segue-test", processor=SimpleSpanProcessor(exporter))
    yield exporter
    tracing.shutdown()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """This process logs here, from debug up; no client writes to it yet."""
    root, own = logging.getLogger(), logging.getLogger("segue")
    before = root.level, own.level, list(root.handlers)
    hushed = foreign.hushed()
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"):
        monkeypatch.setenv(name, "")  # so that what a test does to it is undone
        monkeypatch.delenv(name)
    foreign.hush(False)
    stream = io.StringIO()
    logs.setup("debug", stream)
    yield stream
    foreign.hush(hushed)
    root.setLevel(before[0])
    own.setLevel(before[1])
    root.handlers[:] = before[2]
