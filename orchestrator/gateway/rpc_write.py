"""Answers to gRPC clients that may not read them: HTTP/2 then takes no more, and a write waits for as long as they do.

What a request has made meanwhile is merged by vLLM's front end, so that memory is bounded by what was asked for.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from orchestrator.core.errors import SegueError
from orchestrator.gateway.http_protocol import UNREAD_SECONDS
from orchestrator.gateway.rpc_errors import Context

LEAST_PACE = 64 << 10  # bytes a second that a slow reader of a large message takes


class Unread(SegueError):  # noqa: N818
    """The client takes nothing of its answer."""

    code, http_status, grpc_code = "unread", 408, "DEADLINE_EXCEEDED"


async def write(context: Context, message: Message, first: bool = False) -> None:
    """Writes one message of a stream. Raises Unread where the client took nothing for too long.

    Before the ``first`` one the headers go by themselves: behind a message that is in their own batch, and that nobody
    takes, no status could be sent.
    """
    if first:
        await context.send_initial_metadata(())
    seconds = UNREAD_SECONDS + message.ByteSize() / LEAST_PACE
    try:
        async with asyncio.timeout(seconds) as limit:
            await context.write(message)
    except TimeoutError:
        if not limit.expired():
            raise
        raise Unread(f"the client took nothing of its answer for {seconds:.0f} seconds") from None
