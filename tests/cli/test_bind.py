"""A configuration of a laptop on a cluster of machines, and machines that join one after the other."""

from __future__ import annotations

import pytest

from orchestrator import config
from orchestrator.cli import attach
from orchestrator.cli.parser import build_parser
from orchestrator.core.errors import ConfigError, NotReady
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.spec import Bind

LAPTOP = """
cluster: {name: c}
gateway: {http: "127.0.0.1:8000", grpc: "[::1]:9000"}
controller: {listen: "localhost:9100"}
models: [{name: m, source: "tiny:llama", pools: {serve: {}}}]
"""


@pytest.fixture
def read(tmp_path):
    def reader(text):
        file = tmp_path / "c.yaml"
        file.write_text(text, encoding="utf-8")
        return config.load(file)

    return reader


def test_what_was_on_loopback_is_on_every_interface(read):
    spec = attach.on_the_network(read(LAPTOP))
    assert spec.bind is Bind.NODE
    assert str(spec.gateway.http) == "0.0.0.0:8000"
    assert str(spec.gateway.grpc) == "[::]:9000"
    assert str(spec.controller.listen) == "0.0.0.0:9100"


def test_an_address_that_somebody_chose_stays(read):
    chosen = LAPTOP.replace("127.0.0.1:8000", "10.1.2.3:80")
    assert str(attach.on_the_network(read(chosen)).gateway.http) == "10.1.2.3:80"


def test_all_else_stays_so_that_a_restart_finds_its_cluster(read):
    once = attach.on_the_network(read(LAPTOP))
    assert attach.on_the_network(once) == once
    assert once.models == read(LAPTOP).models


@pytest.mark.parametrize("words", [[], ["--detach"], ["--address", "auto"]])
@pytest.mark.parametrize("option", [["--bind", "node"], ["--nodes", "2"]])
def test_a_ray_of_its_own_has_no_network(words, option):
    with pytest.raises(ConfigError, match=f"{option[0]}: a Ray of its own"):
        attach.stay_of(build_parser().parse_args(["up", "c.yaml", *option, *words]))


@pytest.mark.parametrize("words", [["--attach"], ["--address", "auto", "--keep"]])
def test_on_a_ray_of_others_it_is_taken(words):
    assert attach.stay_of(build_parser().parse_args(["up", "c.yaml", "--bind", "node", *words])).apart


class Joining:
    """A head without CPUs, and a node more at each pause."""

    def __init__(self, most):
        self.most, self.nodes, self.said = most, 0, []

    def topology(self):
        head = Host("head", "head", cpus=0.0)
        return Topology((head, *(Host(str(n), f"n{n}", cpus=4.0) for n in range(self.nodes))), {})

    def pause(self, _):
        self.nodes = min(self.nodes + 1, self.most)


def test_nothing_is_planned_before_the_nodes_are_there():
    ray = Joining(3)
    attach.await_nodes(3, ray.topology, ray.said.append, 60, ray.pause)
    assert ray.nodes == 3
    assert ray.said == ["0 of 3 have joined", "1 of 3 have joined", "2 of 3 have joined"]


def test_a_node_that_never_comes_is_told_in_time():
    ray = Joining(2)
    with pytest.raises(NotReady, match="2 of 3 nodes with CPUs have joined within 5 s"):
        attach.await_nodes(3, ray.topology, ray.said.append, 5, ray.pause)
