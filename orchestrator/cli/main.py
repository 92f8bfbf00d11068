"""``segue``: parses, hands over to one module a command, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from orchestrator.cli.exits import Exit, of_error
from orchestrator.cli.parser import build_parser
from orchestrator.core.errors import SegueError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ?, and doesn't end the command
    try:
        # Commands are imported when they run: `segue --help` must not pay for gRPC, let alone Ray.
        return int(import_module(f"orchestrator.cli.{args.module}").run(args))
    except SegueError as error:
        print(f"segue: {error}", file=sys.stderr)  # noqa: T201
        return of_error(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
