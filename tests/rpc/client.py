"""Clients that know no more than they would from outside."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def generate_by_reflection(address: str, **request: Any) -> tuple[list[Any], set[str]]:
    """What a program can do that has the address and nothing else of ours: all answers, and all services. Blocks."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("segue.v1.Inference").FindMethodByName("Generate")
        asked = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answer.FromString,
        )
        default = {"sampling": {"temperature": 0.5, "stop": ["!"], "max_tokens": 5}}
        prompt = {} if "chat" in request else {"text": "Once"}
        return list(call(asked(**{**default, **prompt, **request}), timeout=30)), set(database.get_services())


def details(error: grpc.aio.AioRpcError) -> dict[str, Message]:
    """google.rpc details by their type's name."""
    (packed,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    found: dict[str, Message] = {}
    for detail in status.details:
        message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
        assert detail.Unpack(message)
        found[type(message).__name__] = message
    return found


def error_info(error: grpc.aio.AioRpcError) -> Any:
    """The ErrorInfo, which every error has."""
    return details(error)["ErrorInfo"]
