"""What came of a batch so far: for its progress, and as a summary at its end."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.table import Table

from orchestrator.cli.terminal import duration


class Account:
    """Counts output lines, those of earlier runs too; times are of this run alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.earlier = 0
        self.failed: Counter[str] = Counter()
        self.prompt_tokens = self.output_tokens = 0
        self._began = time.monotonic()

    def begin(self) -> None:
        """What was counted until now is of earlier runs."""
        self.earlier = self.done + sum(self.failed.values())
        self._began = time.monotonic()

    def count(self, output: dict[str, Any]) -> None:
        error, response = output.get("error"), output.get("response")
        if error:
            self.failed[f"{response['status_code']} {error['code']}" if response else error["code"]] += 1
            return
        self.done += 1
        body = response["body"] if response else None
        usage = body.get("usage") if isinstance(body, dict) else None
        if isinstance(usage, dict):
            self.prompt_tokens += usage.get("prompt_tokens") or 0
            self.output_tokens += usage.get("completion_tokens") or 0

    @property
    def over(self) -> int:
        return self.done + sum(self.failed.values())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Requests a second, in this run."""
        return (self.over - self.earlier) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """'120 of 200 done, 2 failed, 14.2 requests/s, 6 s left'."""
        failed = sum(self.failed.values())
        parts = [f"{self.over} of {self.total} done", *([f"{failed} failed"] if failed else [])]
        if self.over > self.earlier:
            parts += [f"{self.rate:.1f} requests/s", f"{duration((self.total - self.over) / self.rate)} left"]
        return ", ".join(parts)

    def as_json(self, retries: int, output: str) -> dict[str, Any]:
        return {
            "complete": self.over == self.total,
            "output": output,
            "lines": self.total,
            "done": self.done,
            "failed": dict(sorted(self.failed.items())),
            "earlier": self.earlier,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "retries": retries,
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(self.rate, 3),
        }

    def as_table(self, retries: int) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column(justify="right")
        rows = [("lines", self.total), ("done", self.done)]
        rows += [(f"failed: {code}", count) for code, count in sorted(self.failed.items())]
        rows += [("by earlier runs", self.earlier)] if self.earlier else []
        rows += [("prompt tokens", self.prompt_tokens), ("output tokens", self.output_tokens), ("retries", retries)]
        for name, number in rows:
            table.add_row(name, f"{number:,}")
        table.add_row("time", duration(self.seconds))
        table.add_row("requests/s", f"{self.rate:.1f}")
        return table
