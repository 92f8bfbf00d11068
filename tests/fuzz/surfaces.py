"""All ways in, and how much of the effort each gets."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import frame_cases, http_cases, judge, raw_cases, rogue, rpc_cases, schema_cases
from tests.fuzz.aim import Aim
from tests.fuzz.engine import Surface

# Of all cases, in parts.
SHARES = {"schema": 8, "http": 22, "raw": 36, "rpc": 16, "fleet": 5, "frames": 12, "rogue": 1}


def surfaces(aim: Aim) -> dict[str, Callable[[], Surface]]:
    """By name; made when it is their turn. ``rogue`` is the last: it takes away that model's good worker."""

    def schema() -> Surface:
        document = schema_cases.document(aim)
        return Surface("schema", schema_cases.cases(document), schema_cases.Schema(aim).run)

    def http() -> Surface:
        client, names = http_cases.Client(aim), schema_cases.names(schema_cases.document(aim))
        return Surface("http", http_cases.requests(names), lambda request: http_cases.run(client, request))

    return {
        "schema": schema,
        "http": http,
        "raw": lambda: Surface("raw", raw_cases.talks(), raw_cases.Line(aim).run),
        "rpc": lambda: Surface("rpc", rpc_cases.calls, rpc_cases.Caller(aim.grpc).run),
        "fleet": lambda: Surface("fleet", rpc_cases.fleet_calls, rpc_cases.Caller(aim.fleet, judge.internal).run),
        "frames": lambda: Surface("frames", frame_cases.sessions(), frame_cases.Port(aim).run),
        "rogue": lambda: Surface("rogue", rogue.scripts(), rogue.Rogues(aim).run, may_log=True, round=50),
    }
