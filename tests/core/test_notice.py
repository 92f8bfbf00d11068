"""The status that kubectl shows."""

from __future__ import annotations

import yaml

from orchestrator.core.notice import notice
from orchestrator.core.slots import slots_of
from orchestrator.core.spec import Role
from orchestrator.core.types import WorkerState
from tests.core.scenes import World, spec_of

R = WorkerState
PD = {Role.PREFILL: 1, Role.DECODE: 2}


def test_it_says_a_line_a_pool_and_what_waits_why() -> None:
    world = World(spec_of(m=PD)).all_ready()
    world.be("m-decode-1", R.PENDING, "no node has 8 GPUs free", anew=True)
    said = notice(world.scene, {}, "T1", controller="10.0.0.3:9100")
    assert said == {
        "state": "ready, since T1",
        "pools": "m prefill: 1/1 ready, since T1\n"
        "m decode: 1/2 ready; m-decode-1 pending: no node has 8 GPUs free, since T1\n",
        "controller": "10.0.0.3:9100, the cluster's number 1, since T1",
    }


def test_what_did_not_change_keeps_its_time() -> None:
    world = World(spec_of(m=PD)).all_ready()
    first = notice(world.scene, {}, "T1")
    world.be("m-decode-1", R.STARTING, "loads weights")
    world.upgrade = ("rolling", 1, 3, "")
    second = notice(world.scene, first, "T2")
    assert second["state"] == "ready, since T1"
    assert second["pools"].splitlines() == [
        "m prefill: 1/1 ready, since T1",
        "m decode: 1/2 ready; m-decode-1 starting: loads weights, since T2",
    ]
    assert second["upgrade"] == "rolling: 1 of 3 workers, since T2"


def test_it_says_what_is_missing_and_when_it_ends() -> None:
    world = World(spec_of(m=PD))
    assert notice(world.scene, {}, "T1")["state"] == "not ready: no worker of m prefill, m decode, since T1"
    world.all_ready()
    world.be("m-prefill-0", R.FAILED, "waits 4 s", "out of\nmemory ")
    said = notice(world.scene, {}, "T1")
    assert said["state"] == "not ready: no worker of m prefill, since T1"
    assert "m-prefill-0 failed: waits 4 s: out of memory, since T1" in said["pools"]
    world.ending = True
    assert notice(world.scene, {}, "T1")["state"] == "draining, since T1"


def test_a_large_cluster_still_fits_and_reads_as_lines() -> None:
    """A ConfigMap has 1 MiB. YAML shows text as lines only if none of them ends with a blank."""
    world = World(spec_of(**{f"m{number}": {Role.SERVE: 200} for number in range(20)}))
    for slot in slots_of(world.spec):
        world.be(slot.slot_id, R.FAILED, "x " * 1000, "y " * 1000)
    said = notice(world.scene, {}, "T1")
    assert sum(len(text.encode()) for text in said.values()) < 100_000
    assert "m0-serve-2" not in said["pools"] or "197 more" in said["pools"]
    assert all(not line.endswith(" ") for text in said.values() for line in text.splitlines())
    assert yaml.safe_load(yaml.safe_dump(said)) == said
