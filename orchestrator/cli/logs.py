"""``segue logs``."""

from __future__ import annotations

import argparse
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.cli import run_folder, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.run_folder import RunFolder
from orchestrator.core.errors import ClusterUnreachable, ConfigError

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
_POLL_SECONDS = 0.2


def run(args: argparse.Namespace) -> Exit:
    """Exit 0; 2 if no log has such a name; 3 if there is nothing to show."""
    if args.address:
        hint = f"on each node: {RunFolder.of('NAME').logs}; on Kubernetes: kubectl logs"
        raise ConfigError("logs are files on the machine that wrote them", where="--address", hint=hint)
    folder = _folder(args.name)
    shown = _Shown(terminal.out(), folder.logs, args.workers)
    if not shown.look(args.lines):
        names = ", ".join(sorted(path.stem for path in folder.logs.rglob("*.log")))
        if args.workers and names:
            raise ConfigError(
                f"no log is named like {' or '.join(args.workers)}", where="WORKER", hint=f"there are {names}"
            )
        if not args.follow:
            raise ClusterUnreachable(f"no logs in {folder.logs} yet")
    while args.follow:
        time.sleep(_POLL_SECONDS)
        shown.look(args.lines)
    return Exit.OK


def _folder(name: str | None) -> RunFolder:
    """Logs outlive their cluster: the running one's, or else those of the named one or of the one that ran last."""
    try:
        return run_folder.find(name)[0]
    except ClusterUnreachable:
        past = [RunFolder.of(name)] if name else [RunFolder(path.parent) for path in run_folder.home().glob("*/logs")]
        past = [folder for folder in past if folder.logs.is_dir()]
        if not past:
            raise
        return max(past, key=lambda folder: folder.logs.stat().st_mtime)


class _Shown:
    """Which part of each file has been shown."""

    def __init__(self, console: Console, logs: Path, wanted: list[str]) -> None:
        self._console = console
        self._logs = logs
        self._wanted = wanted
        self._offsets: dict[Path, int] = {}

    def look(self, lines: int) -> bool:
        """Shows what is new: of a file seen for the first time its last lines. Returns whether any file is wanted."""
        paths = [path for path in sorted(self._logs.rglob("*.log")) if self._is_wanted(path)]
        width = max((len(self._name(path)) for path in paths), default=0)
        for path in paths:
            fresh = path not in self._offsets
            self._print(path, deque(self._read(path), maxlen=lines if fresh else None), width)
        return bool(paths)

    def _is_wanted(self, path: Path) -> bool:
        return not self._wanted or any(part in self._name(path) for part in self._wanted)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._logs).with_suffix(""))

    def _read(self, path: Path) -> list[str]:
        """Whole lines since last time; a file that shrank was started anew."""
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                offset = 0
            file.seek(offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offsets[path] = offset + end
        return data[:end].decode(errors="replace").splitlines()

    def _print(self, path: Path, lines: deque[str], width: int) -> None:
        name = self._name(path)
        colour = _COLOURS[list(self._offsets).index(path) % len(_COLOURS)]
        for line in lines:
            prefix = Text(f"{name:{width}} │ ", style=colour)
            self._console.print(prefix.append(terminal.without_control(line), style="default"), soft_wrap=True)
