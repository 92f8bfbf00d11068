"""Calls to a cluster's gRPC side. Synchronous: a command does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from orchestrator import config
from orchestrator.core import errors
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.rollout import PoolKey
from orchestrator.core.spec import ClusterSpec
from orchestrator.proto import (
    cluster_pb2,
    cluster_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from orchestrator.record.codec import decode
from orchestrator.record.stories import Found
from orchestrator.record.story import RequestStory

STATUS_SECONDS = 10.0
# A watch is opened again after this long, so that a peer that vanished without a word is noticed.
WATCH_SECONDS = 3600.0
# The tree has one class a code.
_ERRORS = {kind.code: kind for kind in errors.SegueError.__subclasses__()}


@contextmanager
def channel(address: str, *options: tuple[str, int]) -> Iterator[grpc.Channel]:
    """A channel to host:port; a proxy from the environment is for the web and not for this."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0), *options]) as opened:
        yield opened


def status(address: str, seconds: float = STATUS_SECONDS) -> cluster_pb2.ClusterStatus:
    """The cluster as the gateway or controller there sees it. Raises ClusterUnreachable, or what the peer raised."""
    with channel(address) as opened, translated(address):
        answer: cluster_pb2.ClusterStatus = _cluster(opened).Status(cluster_pb2.StatusRequest(), timeout=seconds)
        return answer


def first_status(addresses: list[str], seconds: float = STATUS_SECONDS) -> cluster_pb2.ClusterStatus | None:
    """From the first address that answers; None if none does."""
    for address in addresses:
        try:
            return status(address, seconds)
        except errors.ClusterUnreachable:
            continue
    return None


def topology(address: str, seconds: float = STATUS_SECONDS) -> tuple[Topology, ClusterSpec]:
    """What a controller sees below its cluster, and the configuration that it runs."""
    with channel(address) as opened, translated(address):
        answer = _fleet(opened).Topology(fleet_pb2.TopologyRequest(), timeout=seconds)
    hosts = [
        Host(
            each.host_id,
            each.name,
            each.gpus,
            each.gpu,
            each.cpus,
            each.memory_bytes,
            dict(each.labels),
            each.here,
            each.address,
        )
        for each in answer.hosts
    ]
    reserved = {slot: tuple(each.host_ids) for slot, each in answer.reserved.items()}
    return Topology(tuple(hosts), reserved), config.loads(answer.spec_json)


def upgrade(
    address: str,
    spec: ClusterSpec,
    *,
    makes_room: bool,
    full: Iterable[PoolKey] = (),
    seconds: float = STATUS_SECONDS,
) -> None:
    """Has a controller begin to make its cluster this one.

    Raises ConfigError where it can't become that, NotKept where it begins once the controller can remember it.
    """
    with channel(address) as opened, translated(address):
        request = fleet_pb2.UpgradeRequest(
            spec_json=config.dumps(spec),
            makes_room=makes_room,
            full=[fleet_pb2.Pool(model=model, role=role) for model, role in full],
        )
        try:
            _fleet(opened).Upgrade(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
                raise errors.ConfigError(error.details() or "it can't be upgraded to this") from error
            if error.code() is grpc.StatusCode.ABORTED:
                raise errors.NotKept(error.details() or "it can't be remembered yet") from error
            raise


def explain(address: str, request_id: str, seconds: float = STATUS_SECONDS) -> Found:
    """What the gateway process that takes this call knows of a request.

    Each call is a connection of its own: behind a shared port it may reach another process than the one before.
    """
    with channel(address, ("grpc.use_local_subchannel_pool", 1)) as opened, translated(address):
        answer = _cluster(opened).Explain(cluster_pb2.ExplainRequest(request_id=request_id), timeout=seconds)
    stories = [
        json_format.MessageToDict(story, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for story in answer.stories
    ]
    return Found(answer.gateway, tuple(decode(RequestStory, story) for story in stories), tuple(answer.ambiguous))


def watch(address: str, seconds: float = WATCH_SECONDS) -> Iterator[cluster_pb2.ClusterStatus]:
    """The cluster now and after each change.

    Raises DeadlineExceeded after that many seconds, ClusterUnreachable when the peer goes.
    """
    with channel(address) as opened, translated(address):
        yield from _cluster(opened).Watch(cluster_pb2.WatchRequest(), timeout=seconds)
    raise errors.ClusterUnreachable("ended the watch", where=address)


def generate(
    address: str, request: inference_pb2.GenerateRequest, seconds: float
) -> Iterator[inference_pb2.GenerateResponse]:
    """Streams an answer; leaving the iteration early cancels the request. Raises what the gateway raised."""
    with channel(address) as opened, translated(address):
        call: Any = _inference(opened).Generate(request, timeout=seconds)
        try:
            yield from call
        finally:
            call.cancel()


def models(address: str) -> list[inference_pb2.Model]:
    """The models served."""
    with channel(address) as opened, translated(address):
        answer = _inference(opened).ListModels(inference_pb2.ListModelsRequest(), timeout=STATUS_SECONDS)
        return list(answer.models)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """gRPC's errors as Segue's own."""
    try:
        yield
    except grpc.RpcError as error:
        raise _of_rpc(error, address) from error


def _of_rpc(error: Any, address: str) -> errors.SegueError:
    detail, code = error.details() or "", error.code()
    kind = _ERRORS.get(_reason(error))
    if kind:
        return kind(detail)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # a server that stops says the latter too
        return errors.ClusterUnreachable("no answer", where=address, hint=detail)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded("no answer in time", where=address)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.Unsupported(f"the peer does not offer this: {detail}", where=address)
    return errors.SegueError(f"{code.name}: {detail}", where=address)


def _reason(error: Any) -> str:
    """The code that a gateway puts into the status details; empty for errors that gRPC itself raised."""
    rich_status = rpc_status.from_call(error)
    for packed in rich_status.details if rich_status else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return str(info.reason)
    return ""


def _fleet(opened: grpc.Channel) -> Any:
    return fleet_pb2_grpc.FleetStub(opened)


def _cluster(opened: grpc.Channel) -> Any:
    return cluster_pb2_grpc.ClusterStub(opened)


def _inference(opened: grpc.Channel) -> Any:
    return inference_pb2_grpc.InferenceStub(opened)
