"""What a pod loads before its worker starts."""

from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest

from orchestrator.core.errors import ModelSourceError
from orchestrator.models.prefetch import prefetch, unwanted

LLAMA = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "original/consolidated.00.pth",
    "pytorch_model-00001-of-00002.bin",
    "tokenizer.json",
]


def silent(_: str) -> None:
    pass


def left(files: list[str]) -> list[str]:
    return [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in unwanted(files))]


def test_weights_are_loaded_in_one_form_only():
    assert left(LLAMA) == [LLAMA[0], LLAMA[1], LLAMA[2], "tokenizer.json"]
    assert left(["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]


def test_a_repository_is_downloaded():
    asked = []

    def download(repository, *, ignore_patterns):
        asked.append((repository, ignore_patterns))
        return "/somewhere"

    assert prefetch("org/Name", silent, lambda _: LLAMA, download) == "/somewhere"
    assert asked == [("org/Name", unwanted(LLAMA))]


def test_a_hub_out_of_reach_is_told():
    def away(_):
        raise OSError("Name or service not known\nand more")

    with pytest.raises(
        ModelSourceError, match="org/Name: it can't be downloaded: Name or service not known"
    ) as failure:
        prefetch("org/Name", silent, away)
    assert "and more" not in str(failure.value)
    assert "HF_TOKEN" in str(failure.value)


def test_a_folder_needs_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert prefetch(str(tmp_path), silent) == str(tmp_path)


def test_an_init_container_fails_where_the_model_can_not_be_had(tmp_path):
    command = [sys.executable, "-m", "orchestrator.models.prefetch", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no such folder" in done.stdout
    assert "Traceback" not in done.stderr
