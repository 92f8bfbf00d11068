"""What Ray's tables say of machines and reservations, as hosts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from orchestrator.controller import kinds, ray_hosts
from orchestrator.core.planning.hosts import Topology

A, B, C = (letter * 56 for letter in "abc")


def node(node_id: str, hostname: str = "", name: str = "10.0.0.1", gpus: float = 0, **more: Any) -> dict[str, Any]:
    labels = more.pop("labels", {})
    return {
        "NodeID": node_id,
        "NodeName": name,
        "NodeManagerAddress": more.pop("address", "10.0.0.1"),
        "NodeManagerHostname": hostname or f"host-{node_id[0]}",
        "Resources": {"CPU": 16.0, "memory": 64e9} | ({"GPU": gpus} if gpus else {}) | more,
        "Labels": labels,
    }


def group(name: str, *places: tuple[str, float], state: str = "CREATED") -> dict[str, Any]:
    """``places``: node and GPUs of each bundle."""
    return {
        "name": name,
        "state": state,
        "bundles": {index: ({"GPU": gpus} if gpus else {}) | {"CPU": 1.0} for index, (_, gpus) in enumerate(places)},
        # Not in order, as dicts from a wire need not be.
        "bundles_to_node_id": dict(reversed([(index, node_id) for index, (node_id, _) in enumerate(places)])),
    }


def topology(nodes: list[dict[str, Any]], free: dict[str, float], groups: Iterable[dict[str, Any]] = ()) -> Topology:
    return ray_hosts.topology_of(nodes, {each: {"GPU": gpus} for each, gpus in free.items()}, groups, "c", "10.0.0.1")


def test_what_others_hold_of_a_host_is_not_there_and_what_this_cluster_holds_is() -> None:
    groups = [
        group("c/m-decode-0@3", (A, 1), (A, 1), (B, 1), (B, 1)),
        group("c/m-decode-1@4", (A, 0.5)),
        group("c/m-cpu-0@4", (C, 0), (C, 0)),
        group("other/m-decode-0@3", (A, 2)),
        group("stranger", (B, 1)),
    ]
    found = topology([node(A, gpus=8), node(B, gpus=4), node(C)], {A: 3.25, B: 1, C: 0}, groups)
    # Of A, 0.25 is held by who knows whom, and 2 by another cluster: 5.75 are left.
    assert [(host.name, host.gpus) for host in found.hosts] == [("host-a", 5), ("host-b", 3), ("host-c", 0)]
    assert found.reserved == {"m-decode-0": (A, A, B, B), "m-decode-1": (A,), "m-cpu-0": (C, C)}
    assert [(host.cpus, host.memory_bytes) for host in found.hosts] == [(16.0, 64_000_000_000)] * 3


def test_only_the_newest_filling_of_a_slot_has_its_place() -> None:
    groups = [group("c/m-0@9", (A, 1)), group("c/m-0@10", (B, 1)), group("c/m-0@11", (A, 1), state="PENDING")]
    found = topology([node(A, gpus=2), node(B, gpus=2)], {A: 1, B: 1}, groups)
    assert found.reserved == {"m-0": (B,)}
    assert [host.gpus for host in found.hosts] == [1, 2]


def test_a_host_of_which_nothing_is_known_yet_has_nothing_free() -> None:
    [host] = topology([node(A, gpus=2)], {}).hosts
    assert host.gpus == 0


def test_which_hosts_are_on_this_machine() -> None:
    found = topology([node(A), node(B, address="10.0.0.2")], {})
    assert {host.host_id: host.here for host in found.hosts} == {A: True, B: False}


def test_every_host_has_a_name_that_no_other_has() -> None:
    nodes = [
        node("abcdef1" + "0" * 49, hostname="same"),
        node("abcdef2" + "0" * 49, hostname="same"),
        node(B, name="a given name"),
        node(C, hostname="lone"),
    ]
    found = topology(nodes, {})
    assert [host.name for host in found.hosts] == ["a-given-name", "lone", "same-abcdef1", "same-abcdef2"]


@pytest.mark.parametrize(
    ("labels", "resources", "kind"),
    [
        ({"segue.io/gpu": "h200", "nvidia.com/gpu.product": "NVIDIA-L4"}, {}, "H200"),
        ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "ray.io/accelerator-type": "H100"}, {}, "H100-80GB"),
        ({"ray.io/accelerator-type": "A10G"}, {}, "A10G"),
        ({}, {"accelerator_type:L40S": 1.0}, "L40S"),
        ({"ray.io/accelerator-type": "H20"}, {}, "H20"),
        ({}, {}, ""),
    ],
)
def test_what_gpus_are(labels: dict[str, str], resources: dict[str, float], kind: str) -> None:
    [host] = topology([node(A, gpus=1, labels=labels, **resources)], {A: 1}).hosts
    assert host.gpu == kind
    assert host.labels == labels
    [without] = topology([node(A, labels=labels, **resources)], {A: 1}).hosts
    assert without.gpu == ""


def test_a_name_of_several_kinds_is_the_smallest_of_them_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kinds.kind_called.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [kinds.kind_called("A100") for _ in range(3)] == ["A100-40GB"] * 3
    [record] = caplog.records
    assert "A100-80GB" in record.getMessage() + str(vars(record))


def test_all_names_that_a_label_may_have_for_a_kind() -> None:
    assert {"H100-80GB", "H100", "NVIDIA-H100-80GB-HBM3"} <= set(kinds.names_of(["H100"]))
    assert kinds.names_of(["of my own", "home-made"]) == ("of-my-own", "home-made")
    assert kinds.names_of([]) == ()
