"""Gateways that others started (``segue gateway``): what each said of itself, for as long as it says so."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.errors import InvalidRequest, NameTaken, Overloaded
from orchestrator.proto import cluster_pb2 as pb

LEASE_SECONDS = 10.0  # since its last word
MOST = 500
_LONGEST = {"id": 253, "http": 261, "grpc": 261, "state": 32}  # characters
_WORDS = 300  # characters of a reason that a status has room for
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not bound


@dataclass(frozen=True, slots=True)
class _Lease:
    word: pb.GatewayStatus
    holder: tuple[str, int]  # host and process
    until: float


class Guests:
    """A lease each, by name; ``now`` in seconds."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}

    def heard(self, word: pb.GatewayStatus, host: str, now: float) -> None:
        """Keeps a gateway's word. ``host``: where it called from, for one that listens on every address.

        Raises:
            InvalidRequest: it has no name, or some part of it is too long to be one.
            NameTaken: another is there by that name.
            Overloaded: there are ``MOST`` of them.
        """
        if not word.id:
            raise InvalidRequest("the gateway has no name")
        if long := [name for name, most in _LONGEST.items() if len(getattr(word, name)) > most]:
            raise InvalidRequest(f"the gateway's {long[0]} is longer than {_LONGEST[long[0]]} characters")
        self._expire(now)
        lease, holder = self._leases.get(word.id), (host, word.pid)
        if lease is not None and not _same(lease, holder, word, host):
            raise NameTaken(f"another gateway is there by the name {word.id}", hint="give it another: --name")
        if lease is None and len(self._leases) >= MOST:
            raise Overloaded(f"{MOST} gateways are there already")
        self._leases[word.id] = _Lease(_kept(word, host), holder, now + LEASE_SECONDS)

    def there(self, now: float) -> list[pb.GatewayStatus]:
        """Those whose leases last, by name."""
        self._expire(now)
        return [self._leases[name].word for name in sorted(self._leases)]

    def _expire(self, now: float) -> None:
        for name in [name for name, lease in self._leases.items() if lease.until <= now]:
            del self._leases[name]


def _same(lease: _Lease, holder: tuple[str, int], word: pb.GatewayStatus, host: str) -> bool:
    """Two containers may be process 1 of one host; they can't listen at one address."""
    moved = lease.word.http and word.http and lease.word.http != _from(word.http, host)
    return lease.holder == holder and not moved


def _kept(word: pb.GatewayStatus, host: str) -> pb.GatewayStatus:
    kept = pb.GatewayStatus()
    kept.CopyFrom(word)
    kept.outside = True
    kept.http, kept.grpc = _from(word.http, host), _from(word.grpc, host)
    kept.stage, kept.detail = word.stage[:_WORDS], word.detail[:_WORDS]
    return kept


def _from(address: str, host: str) -> str:
    """Where others reach it."""
    listens, _, port = address.rpartition(":")
    return f"{host}:{port}" if host and listens in _EVERYWHERE else address
