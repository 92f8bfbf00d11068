"""Inventory files: nodes as people write them, and errors that name the place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.config.document import read
from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.places import Node
from orchestrator.core.spec import Device
from orchestrator.planning import inventory
from orchestrator.planning.inventory import Inventory

CPU = DeviceKind("this-cpu", "", Device.CPU, 1 << 30, 1e10, {Precision.FP32: 1e11}, 5e9, "memory", 1e9, 0.1, 10)

ALIASED = dataclasses.replace(CPU, aliases=("cpu",))


def parse(text: str) -> Inventory:
    return inventory.parse(read(text, "nodes.yaml"), measure=lambda: CPU)


def test_the_form_of_the_documentation() -> None:
    found = parse("nodes: [{name: n0, gpu: H100-80GB, count: 8, labels: {zone: a, rack: r1}}]")
    assert found.nodes == (Node("n0", "H100-80GB", 8, {"zone": "a", "rack": "r1"}),)


def test_a_node_has_one_device_unless_told_and_the_catalogues_name_whatever_it_was_called() -> None:
    found = parse("nodes: [{name: n0, gpu: NVIDIA-H100-80GB-HBM3}, {name: n1, gpu: l4}]")
    assert [(node.device, node.count) for node in found.nodes] == [("H100-80GB", 1), ("L4", 1)]


def test_nodes_that_are_alike_are_one_line() -> None:
    nodes = parse('nodes: [{name: "n[0-999]", gpu: L4, count: 8, labels: {rack: 7}}]').nodes
    assert len(nodes) == 1000
    assert (nodes[0].name, nodes[999].name) == ("n0", "n999")
    assert {node.labels["rack"] for node in nodes} == {"7"}
    padded = parse('nodes: [{name: "a[08-10,20].east", gpu: L4}]').nodes
    assert [node.name for node in padded] == ["a08.east", "a09.east", "a10.east", "a20.east"]


def test_the_cpu_is_measured_only_where_a_node_has_it() -> None:
    for word in ("this-cpu", "This CPU", "cpu"):
        document = read(f"nodes: [{{name: c, cpu: {word}}}]", "nodes.yaml")
        assert inventory.parse(document, measure=lambda: ALIASED).catalogue.find("this-cpu") is ALIASED

    def never() -> DeviceKind:
        raise AssertionError("measured for nothing")

    assert inventory.parse(read("nodes: [{name: n, gpu: L4}]", "nodes.yaml"), measure=never).nodes


def test_devices_of_the_file_are_known_to_its_nodes() -> None:
    found = parse(
        """
        devices:
          H100: {usd_per_hour: 2.5}
          this-cpu: {watts: 99}
          Mine:
            {memory_gib: 8, memory_gb_per_second: 100, tflops: {float16: 10}, link_gb_per_second: 1,
             network_gb_per_second: 1, usd_per_hour: 0, watts: 50}
        nodes: [{name: a, gpu: mine}, {name: b, gpu: h100}, {name: c, cpu: this-cpu}]
        """
    )
    assert [node.device for node in found.nodes] == ["Mine", "H100-80GB", "this-cpu"]
    assert found.catalogue.find("H100").usd_per_hour == 2.5
    assert found.catalogue.find("this-cpu").watts == 99


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node: []", ["unknown key 'node'", "did you mean nodes?"]),
        ("devices: {}", ["found no nodes"]),
        ("nodes: []", ["nodes.yaml:1: nodes", "at least one node"]),
        ("nodes: {name: n}", ["nodes.yaml:1: nodes", "allowed: a list"]),
        ("nodes:\n- {gpu: L4}", ["nodes.yaml:2: nodes[0]", "found no name"]),
        ("nodes:\n- {name: n}", ["nodes[0]", "neither gpu nor cpu"]),
        ("nodes:\n- {name: n, gpu: L4, cpu: this-cpu}", ["gpu and cpu"]),
        ("nodes:\n- name: n\n  gpu: H10", ["nodes.yaml:3: nodes[0].gpu", "unknown device 'H10'", "known: T4, L4"]),
        ("nodes: [{name: n, cpu: L4}]", ["nodes[0].cpu", "L4, which is a gpu"]),
        ("nodes: [{name: n, gpu: L4, count: 0}]", ["nodes[0].count", "found 0", "from 1 to 1024"]),
        ("nodes: [{name: n, gpu: L4, labels: {rack: 1.5}}]", ["nodes[0].labels.rack", "found 1.5"]),
        ("nodes: [{name: n, gpu: L4}, {name: n, gpu: L4}]", ["nodes[1].name", "found n a second time"]),
        ('nodes: [{name: n1, gpu: L4}, {name: "n[0-2]", gpu: L4}]', ["nodes[1].name", "found n1 a second time"]),
        ('nodes: [{name: "n[3-1]", gpu: L4}]', ["nodes[0].name", "3-1 counts down"]),
        ('nodes: [{name: "n[a]", gpu: L4}]', ["nodes[0].name", "n[0-31]"]),
        ('nodes: [{name: "n[0-999999999]", gpu: L4}]', ["more than 100000 nodes"]),
        ("nodes: [{name: n, gpu: L4, count: 2, labels: {nvlink_domain: '0-1,2-3'}}]", ["labels", "2-3", "0 to 1"]),
        ("nodes: [{name: n, gpu: L4, count: 4, labels: {nvlink_domain: '0-1,1-2'}}]", ["device 1 twice"]),
        ("nodes: [{name: n, gpu: L4, count: 4, labels: {nvlink_domain: '0-1,2-x'}}]", ["'0-1,2-x'", "as in 0-3,4-7"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the file can't be read: No such file"):
        inventory.load(tmp_path / "none.yaml")
    file = tmp_path / "nodes.yaml"
    file.write_text("nodes: [{name: n0, gpu: L4}]", encoding="utf-8")
    assert inventory.load(file).nodes[0].name == "n0"
