"""What gRPC takes for an error of the servicer's and is the caller's: requests that can't be read, which it logs with
their trace and answers with UNKNOWN; and calls that end, by their deadline say, just as they are answered.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

_CALL_IS_OVER = 'Failed "execute_batch"'  # what began to be sent was not; gRPC has no type of its own for it


def _is_no_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, grpc.aio.InternalError) and str(error).startswith(_CALL_IS_OVER))


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_news)


class Unreadable:
    """Stands where a message would, in a stream of them too."""


Refuse = Callable[[Any], Awaitable[Any]]


async def refuse_plainly(context: Any) -> None:
    """INVALID_ARGUMENT and a sentence."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not what the method takes")


class ReadsRequests(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Has ``refuse`` (it aborts the call) answer a request that can't be read. In a stream it is ``Unreadable``."""

    def __init__(self, refuse: Refuse = refuse_plainly) -> None:
        self._refuse = refuse

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        more = {
            "request_deserializer": _tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(handler.stream_unary, **more)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(handler.stream_stream, **more)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._guarded(handler.unary_unary), **more)
        return grpc.unary_stream_rpc_method_handler(self._guarded(handler.unary_stream), **more)

    def _guarded(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(inner):

            async def streams(request: Any, context: Any) -> AsyncIterator[Any]:
                if isinstance(request, Unreadable):
                    await self._refuse(context)
                async for message in inner(request, context):
                    yield message

            return streams

        async def answers(request: Any, context: Any) -> Any:
            if isinstance(request, Unreadable):
                await self._refuse(context)
            return await inner(request, context)

        return answers


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, RecursionError):
            return Unreadable()

    return read
