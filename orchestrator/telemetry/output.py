"""Where an actor's own output goes: one file an actor, named by its id."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def write_output_to(path: Path) -> None:
    """Appends this process's stdout and stderr, and those of its children, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
