"""What ``segue batch`` reads and writes, as functions of bytes: input, journal, output. No I/O.

input      OpenAI's batch format: a JSON object a line, {custom_id, method, url, body}.
journal    a line that says of what it is, then one a result as it comes: check sum, number of the input line, output
           line. What a crash tore off counts as never written.
output     OpenAI's: {id, custom_id, response: {status_code, request_id, body}, error}, in the order of the input.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.errors import ConfigError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Line:
    """An input line: its number in the file, counted from 1, and where it stands (bytes).

    ``model`` is the one that it asks for, by itself or because it is told to; ``fault`` what keeps it from being sent.
    """

    number: int
    offset: int
    size: int
    custom_id: str | None
    model: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """An input file. ``digest`` names its content."""

    lines: tuple[Line, ...]
    digest: str


@dataclass(slots=True)
class Progress:
    """What a journal tells: for each line that is done, where its output stands in the journal (offset, bytes).

    ``end`` is how much of the journal counts, in bytes.
    """

    done: dict[int, tuple[int, int]] = field(default_factory=dict)
    end: int = 0


class Malformed(ValueError):  # noqa: N818  # named as the errors of the tree are
    """An input line that can't be sent. The text says why."""


def survey(source: Iterable[bytes], model: str | None) -> Task:
    """Looks at each line of an input; empty ones don't count. ``model`` goes before what lines say.

    Raises:
        ConfigError: two lines have the same custom_id, or there is no line.
    """
    digest, offset = hashlib.sha256(), 0
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(source, 1):
        digest.update(raw)
        if raw.strip():
            line = _looked_at(number, offset, raw, model)
            if line.custom_id is not None and (first := seen.setdefault(line.custom_id, number)) != number:
                what = f"lines {first} and {number} have the same custom_id {line.custom_id!r}"
                raise ConfigError(what, where="INPUT", hint="results could not be told apart")
            lines.append(line)
        offset += len(raw)
    if not lines:
        raise ConfigError("it has no lines", where="INPUT")
    return Task(tuple(lines), digest.hexdigest())


def _looked_at(number: int, offset: int, raw: bytes, model: str | None) -> Line:
    custom_id: str | None = None
    try:
        fields = _fields(raw)
        said = fields.get("custom_id")
        custom_id = said if isinstance(said, str) and said else None
        _, body = _order(fields, model)
    except Malformed as error:
        return Line(number, offset, len(raw), custom_id, fault=str(error))
    return Line(number, offset, len(raw), custom_id, model=body["model"])


def order(raw: bytes, model: str | None) -> tuple[str, bytes]:
    """The path and the body that a line asks for. Raises Malformed."""
    url, body = _order(_fields(raw), model)
    return url, json.dumps(body, separators=(",", ":")).encode()


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Malformed("not a JSON object")
    return fields


def _order(fields: dict[str, Any], model: str | None) -> tuple[str, dict[str, Any]]:
    custom_id, body, url = fields.get("custom_id"), fields.get("body"), fields.get("url")
    if not isinstance(custom_id, str) or not custom_id:
        raise Malformed("custom_id has to be a text that is not empty")
    if fields.get("method") != "POST":
        raise Malformed('method has to be "POST"')
    if url not in URLS:
        raise Malformed(f"url has to be one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise Malformed("body has to be an object")
    if body.get("stream"):
        raise Malformed("a stream can't be written to a file: leave body.stream out")
    asked = model or body.get("model")
    if not isinstance(asked, str) or not asked:
        raise Malformed("body.model is missing, and there is no --model")
    return url, {**body, "model": asked}


# ---- output


def request_id(task: Task, line: Line) -> str:
    """The same for a line of a file, whenever it is sent."""
    return "batch_req_" + hashlib.sha256(f"{task.digest}/{line.number}".encode()).hexdigest()[:24]


def answered(task: Task, line: Line, status: int, said_id: str, body: Any) -> dict[str, Any]:
    """The output line of a request that got this answer."""
    error = None
    if status >= 400:
        told = body.get("error") if isinstance(body, dict) else None
        told = told if isinstance(told, dict) else {}
        error = {"code": str(told.get("code") or status), "message": str(told.get("message") or body)[:2000]}
    response = {"status_code": status, "request_id": said_id, "body": body}
    return {"id": request_id(task, line), "custom_id": line.custom_id, "response": response, "error": error}


def refused(task: Task, line: Line) -> dict[str, Any]:
    """The output line of an input line that can't be sent."""
    error = {"code": "invalid_line", "message": f"line {line.number}: {line.fault}"}
    return {"id": request_id(task, line), "custom_id": line.custom_id, "response": None, "error": error}


# ---- journal


def header(task: Task, model: str | None) -> bytes:
    """A journal's first line."""
    about = {"segue_batch": _FORMAT, "input_sha256": task.digest, "lines": len(task.lines), "model": model}
    return _summed(json.dumps(about).encode())


def entry(number: int, output: dict[str, Any]) -> bytes:
    """A journal's line for the result of an input line."""
    return _summed(b"%d %s" % (number, json.dumps(output, separators=(",", ":")).encode()))


def recover(
    journal: Iterable[bytes], task: Task, model: str | None, each: Callable[[dict[str, Any]], None] = lambda _: None
) -> Progress:
    """What is done; ``each`` gets its output lines. What comes after a line that is torn doesn't count.

    Raises:
        ConfigError: the journal is that of another input, or of another model.
    """
    progress, known = Progress(), {line.number for line in task.lines}
    for raw in journal:
        text = _checked(raw)
        if text is None:
            break
        if not progress.end:
            _require_same(json.loads(text), task, model)
        else:
            number, _, output = text.partition(b" ")
            start = progress.end + len(raw) - len(output) - 1
            if int(number) in known and int(number) not in progress.done:
                progress.done[int(number)] = (start, len(output))
                each(json.loads(output))
        progress.end += len(raw)
    return progress


def _require_same(about: dict[str, Any], task: Task, model: str | None) -> None:
    hint = "give it back, or remove the journal to begin anew"
    if about.get("segue_batch") != _FORMAT:
        raise ConfigError("it was begun by another version of segue", where="the journal", hint=hint)
    if about.get("input_sha256") != task.digest:
        raise ConfigError("it is not the file that this output was begun with", where="INPUT", hint=hint)
    if about.get("model") != model:
        raise ConfigError(f"this output was begun with {about.get('model') or 'none'}", where="--model", hint=hint)


def left(task: Task, progress: Progress) -> list[Line]:
    """What is still to do, in order."""
    return [line for line in task.lines if line.number not in progress.done]


def in_order(task: Task, progress: Progress, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """The output file's lines; ``read`` gets them from the journal (offset, bytes)."""
    for line in task.lines:
        yield read(*progress.done[line.number]) + b"\n"


def _summed(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(raw: bytes) -> bytes | None:
    """A journal line without its check sum; None if it is not whole."""
    summed, _, text = raw.removesuffix(b"\n").partition(b" ")
    whole = raw.endswith(b"\n") and b"%08x" % zlib.crc32(text) == summed
    return text if whole else None
