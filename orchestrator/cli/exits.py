"""What the shell gets to know."""

from __future__ import annotations

from enum import IntEnum

from orchestrator.core import errors


class Exit(IntEnum):
    """Stable: scripts rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_READY = 3
    DOES_NOT_FIT = 3
    INTERRUPTED = 130


HELP = """\
exit codes:
  0    it worked; for status: ready; for up: stopped as asked
  1    it failed
  2    wrong usage or configuration; nothing was started
  3    the cluster is not running or not ready; for plan and up: it does not fit
  130  interrupted by Ctrl-C
"""


def of_error(error: errors.SegueError) -> Exit:
    """The exit code for an error that ends a command."""
    if isinstance(error, errors.ConfigError):
        return Exit.USAGE
    if isinstance(error, errors.ClusterUnreachable | errors.NotReady):
        return Exit.NOT_READY
    if isinstance(error, errors.DoesNotFit):
        return Exit.DOES_NOT_FIT
    return Exit.FAILED
