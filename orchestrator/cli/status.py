"""``segue status``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rich.live import Live

from orchestrator.cli import attach, rpc, run_folder, terminal, view
from orchestrator.cli.exits import Exit
from orchestrator.cli.run_folder import RunRecord
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded

_RECONNECT_SECONDS = 1.0
# A gateway doesn't tell when the controller goes, so that a watch looks for itself this often.
_LOOK_SECONDS = 3.0
_CONTROLLER_SECONDS = 1.0


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
        there: str | None = args.address
        if there and attach.of_a_ray(there, args.name):
            there = attach.controller_on(there, args.name)
        self._address = there
        self._name: str | None = args.name
        self.record: RunRecord | None = None
        self.addresses()

    def addresses(self) -> list[str]:
        """Read anew each time: they appear during a start. Raises ClusterUnreachable when no cluster is up."""
        if self._address:
            return [self._address]
        _, self.record = run_folder.find(self._name)
        return [address for address in (self.record.grpc, self.record.controller) if address]

    def controller_away(self, status: Any) -> bool:
        """Whether the controller leaves a question without an answer; gateways repeat what it said last.

        That of a cluster on another machine may be out of reach from here: there the gateway's word has to do.
        """
        address = self.record.controller if self.record else ""
        if not address:
            return not status.controller.pid
        try:
            rpc.status(address, _CONTROLLER_SECONDS)
        except (ClusterUnreachable, DeadlineExceeded):
            return True
        return False

    def explain(self) -> str:
        """Why nobody answers."""
        if self.record is None:
            return f"no answer from {self._address}"
        if self.record.phase == "ready":
            return f"cluster {self.record.name} is up (process {self.record.pid}) but does not answer"
        return f"cluster {self.record.name} is {self.record.phase}"


def _once(target: Target, *, as_json: bool) -> Exit:
    status = rpc.first_status(target.addresses())
    if status is None:
        raise ClusterUnreachable(target.explain(), hint="segue logs shows what it is doing" if target.record else "")
    away = target.controller_away(status)
    if as_json:
        _print_json(view.as_json(status, away=away), one_line=False)
    else:
        terminal.out().print(view.as_table(status, away=away))
    return Exit.OK if status.ready else Exit.NOT_READY


def _watch(target: Target, *, as_json: bool) -> Exit:
    console = terminal.out()
    if as_json or not console.is_terminal:
        for status, away in _changes(target):
            if as_json:
                _print_json(view.as_json(status, away=away), one_line=True)
            else:
                console.print(view.as_table(status, away=away))
                console.print()
    with Live(console=console, auto_refresh=False) as live:
        for status, away in _changes(target):
            live.update(view.as_table(status, away=away), refresh=True)
    return Exit.NOT_READY


def _changes(target: Target) -> Iterator[tuple[Any, bool]]:
    """Status and whether the controller is away, after each change, until the cluster is gone: ClusterUnreachable."""
    last = None
    while True:
        for status in _look(target):
            now = status, target.controller_away(status)
            if now != last:
                yield now
            last = now


def _look(target: Target) -> Iterator[Any]:
    """Statuses from the first address that has any, for a few seconds. Raises ClusterUnreachable as ``Target`` does."""
    for address in target.addresses():
        heard = False
        with suppress(ClusterUnreachable, DeadlineExceeded):
            for status in rpc.watch(address, _LOOK_SECONDS):
                heard = True
                yield status
        if heard:
            return
    if target.record is None:
        raise ClusterUnreachable(target.explain())
    time.sleep(_RECONNECT_SECONDS)


def _print_json(value: dict[str, Any], *, one_line: bool) -> None:
    print(json.dumps(value, indent=None if one_line else 2), flush=True)  # noqa: T201
