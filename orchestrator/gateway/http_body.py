"""A request's body: read whole, within bounds of size and time, and looked at only as far as dispatch needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator.core.errors import InvalidRequest, RequestTooLarge
from orchestrator.gateway.http_errors import BodyTimeout

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

PIECE_SECONDS = 30.0


_NOTHING = msgspec.Raw(b"")


class _Peek(msgspec.Struct):
    """The fields that dispatch needs; the rest of the body is not looked at here."""

    model: str | None = None
    user: msgspec.Raw = _NOTHING  # what vLLM is to judge stays unread until it is asked for
    safety_identifier: msgspec.Raw = _NOTHING
    prompt_cache_key: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = _NOTHING


@dataclass(frozen=True, slots=True)
class Fields:
    """What a body says of the request. ``users`` and ``sessions``: words that may name those, best first."""

    model: str
    users: tuple[str, ...]
    sessions: tuple[str, ...]


async def read(headers: Sequence[tuple[bytes, bytes]], receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if the client left before it had sent it.

    Raises:
        RequestTooLarge: over ``limit`` bytes, or announced to be.
        BodyTimeout: nothing came for ``PIECE_SECONDS``.
    """
    announced = next((value for name, value in headers if name == b"content-length"), b"0")
    if announced.isdigit() and int(announced) > limit:
        raise RequestTooLarge(f"the body is over {limit} bytes")
    parts, size, more = [], 0, True
    while more:
        try:
            message = await asyncio.wait_for(receive(), PIECE_SECONDS)
        except TimeoutError:
            raise BodyTimeout(f"no more of the body came for {PIECE_SECONDS:g} seconds") from None
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise RequestTooLarge(f"the body is over {limit} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


def fields(body: bytes) -> Fields:
    """What a body says of the request; its model is "" if it names none.

    Raises:
        InvalidRequest: it is no JSON object, or its model no text.
    """
    try:
        if not body.isascii():
            body.decode()  # a reader that skips a string does not look into it
        peek = msgspec.json.decode(body, type=_Peek)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body must be a JSON object whose `model` is a string: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    users = (_text(peek.user), _text(peek.safety_identifier), _user_id(peek.metadata))
    return Fields(peek.model or "", users, (_text(peek.prompt_cache_key),))


def _text(raw: msgspec.Raw) -> str:
    """A string, or "" for anything else: whether a field may be that is for vLLM to say."""
    try:
        return msgspec.json.decode(raw, type=str) if raw else ""
    except msgspec.MsgspecError:
        return ""


def _user_id(raw: msgspec.Raw) -> str:
    """Anthropic's place for it."""
    try:
        return _text(msgspec.json.decode(raw, type=_Metadata).user_id) if raw else ""
    except (msgspec.MsgspecError, RecursionError):
        return ""


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body that was read already, then what still comes (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def discard(receive: Receive, seconds: float) -> None:
    """Takes what is still sent, until the client has heard its answer and leaves, or ``seconds`` are over.

    Closing a connection with unread data resets it, and the client would lose the answer.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            message = await receive()
            while message["type"] != "http.disconnect" and message.get("more_body", False):
                message = await receive()
