"""One error tree.

Every error says what happened, where, and what to do about it, and maps to one HTTP status and one gRPC code.
"""

from __future__ import annotations

from typing import ClassVar


class SegueError(Exception):
    """Base of all errors that Segue raises on purpose.

    Args:
        what: what happened, as one sentence without a full stop.
        where: the place a person can look at (a key path, a worker, a request), if there is one.
        hint: what to do about it, if anything can be done.
        retry_after: seconds after which a retry is worth it; None if a retry is pointless or unknown.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, *, where: str = "", hint: str = "", retry_after: float | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        self.retry_after = retry_after
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries inside Ray; keyword-only arguments need their own way through pickle.
        return _rebuild, (type(self), self.what, self.where, self.hint, self.retry_after)


def _rebuild(kind: type[SegueError], what: str, where: str, hint: str, retry_after: float | None) -> SegueError:
    return kind(what, where=where, hint=hint, retry_after=retry_after)


class ConfigError(SegueError):
    """The configuration can't be used as written; nothing was started."""

    code, http_status, grpc_code = "invalid_config", 400, "INVALID_ARGUMENT"


class NameTaken(ConfigError):
    """A cluster of that name is there already, and is not to be touched by whoever wanted the name."""

    code, http_status, grpc_code = "name_taken", 409, "ALREADY_EXISTS"


class DoesNotFit(SegueError):
    """What the configuration asks for can't be run on the devices that there are; nothing was started."""

    code, http_status, grpc_code = "does_not_fit", 409, "FAILED_PRECONDITION"


class InvalidRequest(SegueError):
    """The client's request is wrong in itself and will be wrong again."""

    code, http_status, grpc_code = "invalid_request", 400, "INVALID_ARGUMENT"


class RequestTooLarge(SegueError):
    """The request's body is over ``gateway.max_body_bytes``."""

    code, http_status, grpc_code = "request_too_large", 413, "INVALID_ARGUMENT"


class RouteNotFound(SegueError):
    """No such route, or one that is not for clients."""

    code, http_status, grpc_code = "route_not_found", 404, "UNIMPLEMENTED"


class ModelNotFound(SegueError):
    """No model of that name is served here."""

    code, http_status, grpc_code = "model_not_found", 404, "NOT_FOUND"


class Unsupported(SegueError):
    """The model exists but can't do what was asked (embeddings of a generative model, for one)."""

    code, http_status, grpc_code = "unsupported", 400, "UNIMPLEMENTED"


class NotReady(SegueError):
    """A pool that the request needs has no ready replica now."""

    code, http_status, grpc_code = "not_ready", 503, "UNAVAILABLE"


class Overloaded(SegueError):
    """Refused to protect other requests: its tenant, or this one client of a worker, has more waiting than it may."""

    code, http_status, grpc_code = "overloaded", 429, "RESOURCE_EXHAUSTED"


class ClusterFull(SegueError):
    """More waits than the cluster lets wait; it is not the tenant's own doing."""

    code, http_status, grpc_code = "cluster_full", 503, "UNAVAILABLE"


class WorkerLost(SegueError):
    """A worker died under the request and no other could finish it."""

    code, http_status, grpc_code = "worker_lost", 503, "UNAVAILABLE"


class DeadlineExceeded(SegueError):
    """The request's deadline passed before it finished."""

    code, http_status, grpc_code = "deadline_exceeded", 504, "DEADLINE_EXCEEDED"


class Cancelled(SegueError):
    """The client went away or cancelled."""

    code, http_status, grpc_code = "cancelled", 499, "CANCELLED"


class ModelSourceError(SegueError):
    """The model's files can't be had from where the configuration says they are."""

    code, http_status, grpc_code = "model_source", 500, "FAILED_PRECONDITION"


class WorkerStartFailed(SegueError):
    """A worker did not come up."""

    code, http_status, grpc_code = "worker_start_failed", 503, "UNAVAILABLE"


class StaleEpoch(SegueError):
    """An order from an older plan (or an older controller) reached a worker that follows a newer one."""

    code, http_status, grpc_code = "stale_epoch", 409, "FAILED_PRECONDITION"


class NotKept(SegueError):
    """An order was taken, and is lost if its controller is: Ray's store can't be written to now."""

    code, http_status, grpc_code = "not_kept", 503, "ABORTED"


class ProtocolError(SegueError):
    """A peer sent a frame that the protocol does not allow."""

    code, http_status, grpc_code = "protocol", 500, "INVALID_ARGUMENT"


class ClusterUnreachable(SegueError):
    """No controller or gateway answers where the cluster should be."""

    code, http_status, grpc_code = "cluster_unreachable", 503, "UNAVAILABLE"
