"""What may leave a process by way of a log line or a span: ids, counts, times and names; never text.

Text is told from an id by its look (white space, anything beyond ASCII, length) and by the field's name. Both are a
safety net under callers that pass ids and counts in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.core.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestTooLarge,
    RouteNotFound,
    SegueError,
    Unsupported,
)

Scalar = str | bool | int | float


class Words(str):
    """A sentence of Segue's own making (a routing reason), which may be shown although it looks like text."""

    __slots__ = ()


# They say what is wrong with a request, in its own words.
_ABOUT_REQUESTS = (InvalidRequest, ModelNotFound, RequestTooLarge, RouteNotFound, Unsupported)
_ID = re.compile(r"[!-~]{1,128}")
_TEXT_FIELDS = frozenset(
    {
        *("text", "prompt", "prompts", "content", "message", "messages", "input", "inputs", "body", "payload"),
        *("completion", "output", "outputs", "delta", "deltas", "token", "token_ids", "ids"),
        *("tools", "schema", "json_schema", "regex", "grammar", "stop", "bad_words"),
    }
)


def scalar(name: str, value: object) -> Scalar:
    """``value`` as it may be shown under ``name``; whatever could be text comes out as its size or its type."""
    if isinstance(value, BaseException):
        return describe(value)
    if name in _TEXT_FIELDS:
        return _size(value)
    if isinstance(value, bool | int | float | Words):
        return value
    if isinstance(value, str):
        return str(value) if not value or _ID.fullmatch(value) else _size(value)
    return _size(value)


def fields(values: Mapping[str, object]) -> dict[str, Scalar]:
    """All of ``values`` as they may be shown; those that are None are left out."""
    return {name: scalar(name, value) for name, value in values.items() if value is not None}


def describe(error: BaseException) -> str:
    """An error for people: its whole story where the words are ours or the system's, else its type (and code) alone.

    Libraries quote their input in messages ("... got 'Dear diary'"), hence the distinction. An error of ours that
    came of a library's may repeat its words.
    """
    if isinstance(error, SegueError):
        said = error.code if _repeats(error) else str(error)
        return f"{type(error).__name__}: {said}"
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'no reason given'}"
    return type(error).__name__


def _repeats(error: SegueError) -> bool:
    if isinstance(error, _ABOUT_REQUESTS):
        return True
    cause = error.__cause__
    if isinstance(cause, SegueError):
        return _repeats(cause)
    return cause is not None and not isinstance(cause, OSError)


def frames(error: BaseException) -> str:
    """Where an error came from, innermost last: ``file:line:function`` without source lines or messages."""
    trail: list[str] = []
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        trail.append(f"{code.co_filename.rpartition('/')[2]}:{at.tb_lineno}:{code.co_name}")
        at = at.tb_next
    return ">".join(trail[-12:])


def _size(value: object) -> str:
    try:
        return f"<{type(value).__name__}:{len(value)}>"  # type: ignore[arg-type]
    except TypeError:
        return f"<{type(value).__name__}>"
