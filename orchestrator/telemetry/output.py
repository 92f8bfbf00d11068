"""Where an actor's own output goes: one file an actor, named by its id. And what a start that failed said there."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

_OWN = "/dev/fd/2"
# At the end of a trace, and in a line of vLLM's by Segue's rules (orchestrator/telemetry/logs.py).
_EXCEPTION = re.compile(r"[A-Za-z_.]*(?:Error|Exception|Exit|Failed): \S.*")
_LOGGED = re.compile(rf'\S+ error vllm\..* error="({_EXCEPTION.pattern})" at=')
_POINTER = re.compile(r"See (root cause above|stack trace for root cause)")


def write_output_to(path: Path) -> None:
    """Appends this process's stdout and stderr, and those of its children, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


def written() -> int:
    """How many bytes this process and its children have written so far; 0 where that is no file."""
    about = os.fstat(2)
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def own_root_cause(since: int) -> str:
    """``root_cause`` of what was ``written`` since then; empty where that is no file."""
    if written() <= since:
        return ""
    with Path(_OWN).open("rb") as file:
        file.seek(since)
        return root_cause(file.read().decode(errors="replace").splitlines())


def points_at_another(said: str) -> bool:
    """Whether an exception of vLLM's only says that a child's is the one to look at."""
    return _POINTER.search(said) is not None


def root_cause(lines: Iterable[str]) -> str:
    """The last exception that a log tells of, as one line; empty if it tells of none.

    vLLM's parent processes raise more that only point at their children's; they do not count.
    """
    told = filter(None, map(_told, lines))
    return next((each for each in reversed(list(told)) if not points_at_another(each)), "")


def _told(line: str) -> str:
    if logged := _LOGGED.match(line):
        return logged[1]
    return line if _EXCEPTION.match(line) else ""
