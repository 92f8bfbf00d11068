"""Which gateways of others are there."""

from __future__ import annotations

import pytest

from orchestrator.controller.guests import LEASE_SECONDS, MOST, Guests
from orchestrator.core.errors import InvalidRequest, NameTaken, Overloaded
from orchestrator.proto.cluster_pb2 import GatewayStatus


def names(guests: Guests, now: float) -> list[str]:
    return [each.id for each in guests.there(now)]


def test_each_is_there_until_it_was_silent_for_its_lease() -> None:
    guests = Guests()
    guests.heard(GatewayStatus(id="b"), "", 0.0)
    guests.heard(GatewayStatus(id="a"), "", 1.0)
    assert names(guests, LEASE_SECONDS - 0.1) == ["a", "b"]
    guests.heard(GatewayStatus(id="b", state="draining"), "", LEASE_SECONDS - 0.1)
    assert [(each.id, each.state) for each in guests.there(LEASE_SECONDS + 1.0)] == [("b", "draining")]
    assert names(guests, 2 * LEASE_SECONDS) == []


def test_a_crowd_is_bounded_and_those_that_are_there_are_still_heard() -> None:
    guests = Guests()
    for number in range(MOST):
        guests.heard(GatewayStatus(id=f"g{number}"), "", 0.0)
    with pytest.raises(Overloaded):
        guests.heard(GatewayStatus(id="one more"), "", 1.0)
    guests.heard(GatewayStatus(id="g7", state="draining"), "", 1.0)
    guests.heard(GatewayStatus(id="one more"), "", LEASE_SECONDS)
    assert names(guests, LEASE_SECONDS) == ["g7", "one more"]


def test_two_of_one_name_do_not_take_turns() -> None:
    guests = Guests()
    first, second = (GatewayStatus(id="g", pid=1, http=f"0.0.0.0:{port}") for port in (80, 81))
    guests.heard(GatewayStatus(id="g", pid=1), "h", 0.0)  # which does not listen yet
    guests.heard(first, "h", 1.0)
    for other, host in ((second, "h"), (first, "elsewhere"), (GatewayStatus(id="g", pid=2), "h")):
        with pytest.raises(NameTaken):
            guests.heard(other, host, 2.0)
    guests.heard(first, "h", 3.0)
    assert [each.http for each in guests.there(4.0)] == ["h:80"]
    guests.heard(second, "h", 3.0 + LEASE_SECONDS)
    assert [each.http for each in guests.there(3.0 + LEASE_SECONDS)] == ["h:81"]


def test_a_long_reason_is_cut() -> None:
    guests = Guests()
    guests.heard(GatewayStatus(id="g", stage=1000 * "s", detail=1000 * "d"), "", 0.0)
    (word,) = guests.there(0.0)
    assert (word.stage, word.detail) == (300 * "s", 300 * "d")


@pytest.mark.parametrize("part", ["id", "http", "grpc", "state"])
def test_what_is_too_long_is_refused(part: str) -> None:
    guests = Guests()
    with pytest.raises(InvalidRequest, match=part):
        guests.heard(GatewayStatus(**{"id": "g", part: 2000 * "x"}), "", 0.0)
    assert names(guests, 0.0) == []


@pytest.mark.parametrize(
    ("said", "host", "told"),
    [
        ("0.0.0.0:80", "10.0.0.7", "10.0.0.7:80"),
        ("[::]:80", "[fd00::7]", "[fd00::7]:80"),
        ("10.1.1.1:80", "10.0.0.7", "10.1.1.1:80"),
        ("0.0.0.0:80", "", "0.0.0.0:80"),
        ("", "10.0.0.7", ""),
    ],
)
def test_one_that_listens_everywhere_is_where_it_called_from(said: str, host: str, told: str) -> None:
    guests = Guests()
    guests.heard(GatewayStatus(id="g", http=said, grpc=said), host, 0.0)
    (word,) = guests.there(0.0)
    assert (word.http, word.grpc) == (told, told)
