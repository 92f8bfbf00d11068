"""``segue status``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live

from orchestrator.cli import rpc, run_folder, terminal, view
from orchestrator.cli.exits import Exit
from orchestrator.cli.run_folder import RunRecord
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded

_RECONNECT_SECONDS = 1.0


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when ready, 3 when not ready or not running."""
    try:
        target = Target(args)
        return _watch(target, as_json=args.json) if args.watch else _once(target, as_json=args.json)
    except ClusterUnreachable as error:
        if args.json:
            _print_json(view.NOT_RUNNING | {"detail": str(error)}, one_line=args.watch)
            return Exit.NOT_READY
        raise


class Target:
    """Where to ask: the gateway first, whose numbers are one engine step old, then the controller."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.record: RunRecord | None = None
        self.addresses()

    def addresses(self) -> list[str]:
        """Read anew each time: they appear during a start. Raises ClusterUnreachable when no cluster is up."""
        if self._args.address:
            return [self._args.address]
        _, self.record = run_folder.find(self._args.name)
        return [address for address in (self.record.grpc, self.record.controller) if address]

    def explain(self) -> str:
        """Why nobody answers."""
        if self.record is None:
            return f"no answer from {self._args.address}"
        if self.record.phase == "ready":
            return f"cluster {self.record.name} is up (process {self.record.pid}) but does not answer"
        return f"cluster {self.record.name} is {self.record.phase}"


def _once(target: Target, *, as_json: bool) -> Exit:
    status = rpc.first_status(target.addresses())
    if status is None:
        raise ClusterUnreachable(target.explain(), hint="segue logs shows what it is doing" if target.record else "")
    if as_json:
        _print_json(view.as_json(status), one_line=False)
    else:
        terminal.out().print(view.as_table(status))
    return Exit.OK if status.ready else Exit.NOT_READY


def _watch(target: Target, *, as_json: bool) -> Exit:
    console = terminal.out()
    if as_json or not console.is_terminal:
        for status in _changes(target):
            if as_json:
                _print_json(view.as_json(status), one_line=True)
            else:
                _print_table(console, status)
    with Live(console=console, auto_refresh=False) as live:
        for status in _changes(target):
            live.update(view.as_table(status), refresh=True)
    return Exit.NOT_READY


def _changes(target: Target) -> Iterator[Any]:
    """Statuses until the cluster is gone, which raises ClusterUnreachable."""
    while True:
        for address in target.addresses():
            try:
                yield from rpc.watch(address)
            except (ClusterUnreachable, DeadlineExceeded):
                continue
        if target.record is None:
            raise ClusterUnreachable(target.explain())
        time.sleep(_RECONNECT_SECONDS)


def _print_table(console: Console, status: Any) -> None:
    console.print(view.as_table(status))
    console.print()


def _print_json(value: dict[str, Any], *, one_line: bool) -> None:
    print(json.dumps(value, indent=None if one_line else 2), flush=True)  # noqa: T201
