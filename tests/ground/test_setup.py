"""``make serve`` on a machine that is not as it should be says what to do, and on one that is does nothing twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EMPTY = "[build-system]\nrequires = []\n"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository with the setup script and one package to install, in a folder with a space in its name."""
    root = tmp_path / "a clone"
    for folder in ("scripts", "requirements", "orchestrator/proto"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.py", root / "scripts")
    shutil.copy(ROOT / "Makefile", root)
    (root / "pyproject.toml").write_text(EMPTY, encoding="utf-8")
    (root / "hatch_build.py").write_text("", encoding="utf-8")
    (root / "requirements" / "cpu.lock").write_text("torch==2.13.0\n", encoding="utf-8")
    (root / "requirements" / "dev.lock").write_text("", encoding="utf-8")
    return root


def setup(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "setup.py"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def test_a_torch_that_can_not_be_had_names_the_way_out(clone, tmp_path):
    done = setup(clone, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "No matching distribution found for torch==2.13.0" in done.stdout
    assert "setup: installing torch==2.13.0 failed (exit code 1)" in done.stderr
    assert (
        "what to do: if the network is up, name an index that has torch==2.13.0: make serve TORCH_INDEX=" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_what_was_done_is_not_done_again(clone, tmp_path):
    setup(clone, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    again = setup(clone, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert "making .venv" not in again.stdout
    assert "installing torch" in again.stdout


def test_a_clone_that_was_moved_gets_a_new_environment(clone, tmp_path):
    """The scripts in .venv/bin hold the old path."""
    setup(clone, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    moved = clone.rename(tmp_path / "elsewhere")
    assert "making .venv" in setup(moved, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)).stdout


def test_another_python_is_turned_down(clone):
    old = clone / "old.py"
    source = (
        f"import runpy, sys\nsys.version_info = (3, 9, 1)\nrunpy.run_path({str(clone / 'scripts' / 'setup.py')!r}, "
    )
    old.write_text(source + "run_name='__main__')\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(old)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: this is Python 3.9\n       what to do: install Python 3.11 or 3.12")


def test_make_says_what_it_can_do(clone):
    done = subprocess.run(["make"], cwd=clone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "make serve" in done.stdout
    assert "make test" in done.stdout
