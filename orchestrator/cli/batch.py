"""``segue batch``: a file of requests through a cluster's gateway, stopped and gone on with at any point."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli import attach, batch_lines, run_folder, terminal
from orchestrator.cli.batch_account import Account
from orchestrator.cli.batch_calls import Calls
from orchestrator.cli.batch_journal import Journal
from orchestrator.cli.batch_lines import Line, Task
from orchestrator.cli.exits import Exit
from orchestrator.core.errors import ClusterUnreachable, ConfigError, ModelNotFound

_LINE_SECONDS = 5.0  # between two lines of progress, where they can't be rewritten
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for what a job runs
_RAYS_FOLDER = "runtime_resources"
_GRACE = "RAY_JOB_STOP_WAIT_TIME_S"  # what `ray job stop` leaves a job, in seconds
_RAYS_GRACE = 3.0
_MARGIN_SECONDS = 1.0


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when every line was answered, 1 when some failed, 3 without a cluster, 130 when stopped."""
    source, output = Path(args.input), Path(args.output)
    _require_to_last(output)
    task = _surveyed(source, args.model)
    account = Account(len(task.lines))
    journal = Journal(output, task, args.model, account.count)
    console = terminal.err()
    try:
        if journal.torn:
            console.print(f"segue: the journal's last {journal.torn} bytes were torn: what they told is done again")
        account.begin()
        if account.earlier:
            console.print(f"segue: goes on: {account.line()}")
        once_more = 0
        try:
            if journal.left():
                once_more = asyncio.run(_Run(args, task, journal, account, console).run(_gateway(args)))
        finally:
            if 0 < account.over < account.total:
                console.print(f"segue: stopped: {account.line()}", soft_wrap=True)
                console.print(f"segue: go on: segue {shlex.join(sys.argv[1:])}", soft_wrap=True)
        if account.over < account.total:
            return Exit.INTERRUPTED
        journal.finish()
    finally:
        journal.close()
    if args.json:
        print(json.dumps(account.as_json(once_more, str(output)), indent=2))  # noqa: T201
    else:
        terminal.out().print(account.as_table(once_more))
    console.print(f"segue: results are in {output}", soft_wrap=True)
    return Exit.FAILED if account.failed else Exit.OK


def _require_to_last(output: Path) -> None:
    """A job's working directory is a copy that Ray removes."""
    if _JOB in os.environ and _RAYS_FOLDER in output.absolute().parts:
        what = "it is in the job's own folder, which Ray removes after the job"
        raise ConfigError(what, where=str(output), hint="name a path from / on that stays")


def _surveyed(source: Path, model: str | None) -> Task:
    try:
        with source.open("rb") as file:
            return batch_lines.survey(file, model)
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", where=str(source)) from error


def _gateway(args: argparse.Namespace) -> str:
    """Its URL. Raises ClusterUnreachable, NotReady, ConfigError."""
    if args.gateway:
        return args.gateway if "://" in args.gateway else f"http://{args.gateway}"
    address = args.address or (attach.HERE if _JOB in os.environ else "")
    if address:
        return f"http://{attach.gateway_on(address, args.name)[0]}"
    _, record = run_folder.find(args.name)
    if not record.http:
        hint = "segue status --watch shows when it is ready"
        raise ClusterUnreachable(f"cluster {record.name} is {record.phase}", hint=hint)
    return f"http://{record.http}"


class _Run:
    """One run, from what is left to what could be done of it."""

    def __init__(
        self, args: argparse.Namespace, task: Task, journal: Journal, account: Account, console: Console
    ) -> None:
        self._args = args
        self._task = task
        self._journal = journal
        self._account = account
        self._console = console
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._keeping: set[asyncio.Task[None]] = set()

    async def run(self, url: str) -> int:
        """How many requests were sent again. Raises ClusterUnreachable, ModelNotFound."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        calls = Calls(url, self._args.concurrency)
        handle = os.open(self._args.input, os.O_RDONLY)
        shown = asyncio.create_task(self._show())
        try:
            left = self._journal.left()
            await self._require_models(calls, left)
            await self._work(calls, iter(left), handle)
        finally:
            shown.cancel()
            await asyncio.gather(shown, *self._keeping, return_exceptions=True)
            os.close(handle)
            await calls.close()
        return calls.retries

    async def _require_models(self, calls: Calls, left: list[Line]) -> None:
        """Nothing is sent where a model is asked for that nobody serves: more likely the file is not meant for here."""
        served = await calls.models()
        unknown = {line.model: line.number for line in reversed(left) if not line.fault and line.model not in served}
        for model, number in unknown.items():
            where = "--model" if self._args.model else f"line {number}"
            hint = f"models here: {', '.join(served)}" + ("" if self._args.model else "; --model names one for all")
            raise ModelNotFound(f"no model '{model}' is served here", where=where, hint=hint)

    async def _work(self, calls: Calls, left: Iterator[Line], handle: int) -> None:
        workers = [asyncio.create_task(self._worker(calls, left, handle)) for _ in range(self._args.concurrency)]
        stopped = asyncio.create_task(self._until_cut_off())
        try:
            working = asyncio.gather(*workers)
            either: list[asyncio.Future[Any]] = [working, stopped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (stopped, *workers):
                task.cancel()
            await asyncio.gather(stopped, *workers, return_exceptions=True)

    async def _worker(self, calls: Calls, left: Iterator[Line], handle: int) -> None:
        for line in left:
            if self._stop.is_set():
                return
            if line.fault:
                output = batch_lines.refused(self._task, line)
            else:
                path, body = batch_lines.order(os.pread(handle, line.size, line.offset), self._args.model)
                answer = await calls.ask(path, body, batch_lines.request_id(self._task, line))
                output = batch_lines.answered(self._task, line, *answer)
            keeping = asyncio.create_task(self._keep(line, output))
            self._keeping.add(keeping)
            keeping.add_done_callback(self._keeping.discard)
            await asyncio.shield(keeping)  # an answer that is there is kept, also by one that is stopped

    async def _keep(self, line: Line, output: dict[str, Any]) -> None:
        await self._journal.add(line.number, output)
        self._account.count(output)

    async def _until_cut_off(self) -> None:
        """Returns when nobody waits any more for what is under way."""
        await self._stop.wait()
        seconds = max(0.0, float(os.environ.get(_GRACE, _RAYS_GRACE)) - _MARGIN_SECONDS)
        self._console.print(f"segue: stopping; {seconds:g} s for what is under way")
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return

    def _signalled(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _show(self) -> None:
        if self._console.is_terminal:
            with self._console.status("") as status:
                while True:
                    status.update(f"batch: {self._account.line()}")
                    await asyncio.sleep(0.2)
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            self._console.print(f"segue: {self._account.line()}")
