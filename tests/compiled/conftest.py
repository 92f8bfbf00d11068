"""Two copies of the repository: as it is, and with its core compiled. Python that is started in one runs that one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "orchestrator",
    "workers",
    "tests",
    "scripts",
    "configs",
    "docs",
    "pyproject.toml",
    "hatch_build.py",
    "Makefile",
)
PARTS += ("README.md", "LICENSE")  # packed into wheels
NO_TOOLS = 3


@dataclass(frozen=True)
class Copy:
    """A checkout of its own."""

    root: Path

    def python(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.root, capture_output=True, text=True, timeout=seconds
        )

    def says(self, *arguments: str) -> str:
        done = self.python(*arguments)
        assert not done.returncode, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Nothing in it is compiled, whatever this checkout is."""
    root = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("*.so", "compiled.json", "__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=ignored)
        else:
            shutil.copy2(ROOT / part, root / part)
    return Copy(root)


@pytest.fixture(scope="session")
def compiled(sources: Copy, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """As ``make compile`` leaves it."""
    copy = Copy(Path(shutil.copytree(sources.root, tmp_path_factory.mktemp("compiled"), dirs_exist_ok=True)))
    done = copy.python("scripts/compile.py", seconds=900)
    if done.returncode == NO_TOOLS:
        pytest.skip(done.stderr.strip())
    assert not done.returncode, done.stderr
    return copy
