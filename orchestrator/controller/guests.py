"""Gateways that others started (``segue gateway``): what each said of itself, for as long as it says so."""

from __future__ import annotations

from orchestrator.core.errors import InvalidRequest, Overloaded
from orchestrator.proto import cluster_pb2 as pb

LEASE_SECONDS = 10.0  # since its last word
MOST = 1000
_LONGEST = {"id": 253, "http": 261, "grpc": 261, "state": 32, "stage": 1000, "detail": 1000}  # characters
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not bound


class Guests:
    """A lease each; ``now`` in seconds."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[pb.GatewayStatus, float]] = {}

    def heard(self, word: pb.GatewayStatus, host: str, now: float) -> None:
        """Keeps a gateway's word. ``host``: where it called from, for one that listens on every address.

        Raises:
            InvalidRequest: it has no name, or some part of it is too long to be one.
            Overloaded: there are ``MOST`` of them.
        """
        if not word.id:
            raise InvalidRequest("the gateway has no name")
        if long := [name for name, most in _LONGEST.items() if len(getattr(word, name)) > most]:
            raise InvalidRequest(f"the gateway's {long[0]} is longer than {_LONGEST[long[0]]} characters")
        self._expire(now)
        if word.id not in self._words and len(self._words) >= MOST:
            raise Overloaded(f"{MOST} gateways are there already")
        kept = pb.GatewayStatus()
        kept.CopyFrom(word)
        kept.outside = True
        kept.http, kept.grpc = _from(word.http, host), _from(word.grpc, host)
        self._words[word.id] = (kept, now + LEASE_SECONDS)

    def there(self, now: float) -> list[pb.GatewayStatus]:
        """Those whose leases last, by name."""
        self._expire(now)
        return [self._words[name][0] for name in sorted(self._words)]

    def _expire(self, now: float) -> None:
        for name in [name for name, (_, until) in self._words.items() if until <= now]:
            del self._words[name]


def _from(address: str, host: str) -> str:
    """Where others reach it."""
    listens, _, port = address.rpartition(":")
    return f"{host}:{port}" if host and listens in _EVERYWHERE else address
