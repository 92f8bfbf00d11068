"""One line an event: time, level, component, event, fields, trace id.

    2026-03-01T12:00:00.123Z info gateway.link session_opened worker=smollm2-decode-0 attempt=1

Segue's own code logs through ``events(component)`` and names events, not sentences: fields are ids, counts and
seconds, and ``redact`` drops whatever looks like text. Lines of other libraries pass through the same handler, folded
into one line; once ``foreign.hush`` was called, only where they came from.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from opentelemetry import trace

from orchestrator.telemetry import foreign, redact

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FIELDS = "segue_fields"
_ERROR = "segue_error"
_SAID = 1000
_START = "failed to start"  # as vLLM's engine and worker processes put it


class Events:
    """A component's log. Events are snake_case names; see the module for what fields may hold."""

    __slots__ = ("_logger",)

    def __init__(self, component: str) -> None:
        self._logger = logging.getLogger(f"segue.{component}")

    def debug(self, event: str, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields, None)

    def info(self, event: str, **fields: object) -> None:
        self._log(logging.INFO, event, fields, None)

    def warning(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        self._log(logging.WARNING, event, fields, error)

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """With ``error``, the line also says where it was raised."""
        self._log(logging.ERROR, event, fields, error)

    def failure(self, event: str, error: BaseException, **fields: object) -> None:
        """As ``error``, and in the error's own words: only for what no request has a part in (a start, a loop)."""
        self._log(logging.ERROR, event, {**fields, "said": redact.Words(str(error)[:_SAID])}, error)

    def _log(self, level: int, event: str, fields: dict[str, object], error: BaseException | None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: redact.fields(fields), _ERROR: error})


def events(component: str) -> Events:
    """The log of a component, e.g. ``gateway.link``."""
    return Events(component)


def setup(level: str = "info", stream: TextIO | None = None, *, engine: bool = False) -> None:
    """Sends all of this process's logs to ``stream`` (stderr if None). May be called again; the last call counts.

    Args:
        level: debug, info, warning or error, for Segue's own events; other libraries are heard from warning up.
        engine: as in ``foreign.take_over_vllm``, which has to come before vLLM is imported to reach all of it.

    Raises:
        ValueError: no such level.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: one of {', '.join(_LEVELS)}")
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, LineFormatter)]:
        root.removeHandler(old)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, _LEVELS[level]))
    logging.getLogger("segue").setLevel(_LEVELS[level])
    if foreign.take_over_vllm(engine):
        events("telemetry").warning("vllm_log_level_pinned", level="INFO")


class LineFormatter(logging.Formatter):
    """A record as one line; see the module."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{seconds}.{int(record.msecs):03d}Z {record.levelname.lower()} {record.name.removeprefix('segue.')}"
        body = self._own(record) if hasattr(record, _FIELDS) else self._foreign(record)
        return f"{head} {body}{_trace()}"

    @staticmethod
    def _own(record: logging.LogRecord) -> str:
        parts = [str(record.msg)]
        parts += [f"{name}={_shown(value)}" for name, value in getattr(record, _FIELDS).items()]
        error = getattr(record, _ERROR, None)
        if error is not None:
            parts.append(f'error="{_one_line(redact.describe(error))}" at={redact.frames(error)}')
        return " ".join(parts)

    @staticmethod
    def _foreign(record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if foreign.hushed():
            place = f"at={record.filename}:{record.lineno}:{record.funcName}"
            return f"{place} error={type(error).__name__}" if error else place
        message = _one_line(record.getMessage())
        if error is None:
            return message
        # No request has a part in a start, and the process that waits for it is only told to look here.
        said = f"{type(error).__name__}: {error}"[:_SAID] if _START in str(record.msg) else redact.describe(error)
        return f'{message} error="{_one_line(said)}" at={redact.frames(error)}'


def _shown(value: redact.Scalar) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return f'"{_one_line(text)}"' if " " in text or not text else text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _trace() -> str:
    context = trace.get_current_span().get_span_context()
    return f" trace={trace.format_trace_id(context.trace_id)}" if context.is_valid else ""
