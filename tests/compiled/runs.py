"""Simulated runs under every policy, in one pool and in two, with all that can go wrong: printed as JSON."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.core.policies import POLICIES
from orchestrator.sim.report import as_json
from tests.sim.support import cluster, play, requests

FAULTS = "crash:0@2,drain:1@3,slow:0@4:x4,partition:0-1@4+3,lose:0.05,reorder:0.2,leave:0.1,random:3"
TRACE = "generate:bursts,rate=20,prompt=400,output=40,prefix=128,prefixes=5,tenants=3"


def runs() -> dict[str, Any]:
    made = {}
    for seed, policy in enumerate(sorted(POLICIES)):
        for roles in (("serve",), ("prefill", "decode")):
            spec = cluster(*roles)
            asked = requests(spec, TRACE, seed=seed, requests=120)
            for disturbed in ("", FAULTS):
                result = play(spec, asked, policy=policy, disturbed=disturbed, gateways=2, seed=seed, deep=not seed)
                told = as_json(result)
                del told["wall_seconds"]
                made[f"{policy} {roles} {disturbed}"] = told
    return made


if __name__ == "__main__":
    print(json.dumps(runs()))  # noqa: T201
