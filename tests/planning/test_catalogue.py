"""The catalogue of devices: facts that plans rest on, what users change in it, and this machine's CPU."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.cursor import Cursor
from orchestrator.config.document import Document, read
from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Catalogue, Precision
from orchestrator.core.spec import Device
from orchestrator.planning import catalogue, this_cpu

OWN = {
    "memory_gib": 23.5,
    "memory_gb_per_second": 1008,
    "tflops": {"float32": 82.6, "bfloat16": 165.2},
    "link_gb_per_second": 32,
    "network_gb_per_second": 1.25,
    "usd_per_hour": 0,
    "watts": 450,
}


def described(devices: dict[str, Any]) -> Catalogue:
    return catalogue.described(Cursor(Document(devices, "inventory")), catalogue.builtin())


def test_the_devices_that_were_promised_are_there() -> None:
    names = {kind.name for kind in catalogue.builtin()}
    promised = {"L4", "A10G", "L40S", "A100-40GB", "A100-80GB", "H100-80GB", "H200", "B200", "MI300X"}
    assert promised <= names


def test_every_device_has_its_sources_in_the_file() -> None:
    text = Path(catalogue.__file__).with_name("devices.yaml").read_text(encoding="utf-8")
    entries = read(text, "devices.yaml").value
    assert all("data sheet" in entry["sources"][0] for entry in entries.values())


@pytest.mark.parametrize(
    ("name", "sparse", "precision"),
    [
        ("L4", 485e12, Precision.FP8),
        ("A100-80GB", 624e12, Precision.BF16),
        ("H100", 3958e12, Precision.FP8),
        ("H200", 1979e12, Precision.BF16),
        ("MI300X", 2614.9e12, Precision.FP16),
    ],
)
def test_rates_are_dense_half_of_what_data_sheets_print_with_sparsity(
    name: str, sparse: float, precision: Precision
) -> None:
    assert catalogue.builtin().find(name).flops[precision] == pytest.approx(sparse / 2, rel=1e-3)


def test_memory_is_what_a_process_sees_never_more_than_the_module_has() -> None:
    module = {"L4": 24, "A10G": 24, "L40S": 48, "A100-40GB": 40, "A100-80GB": 80, "H100": 80, "T4": 16}
    for name, gibibytes in module.items():
        assert 0.9 * gibibytes * 2**30 < catalogue.builtin().find(name).memory_bytes < gibibytes * 2**30


def test_a_faster_sibling_is_never_the_slower_one() -> None:
    order = [catalogue.builtin().find(name) for name in ("A100-80GB", "H100", "H200", "B200")]
    for older, newer in itertools.pairwise(order):
        assert newer.memory_bandwidth > older.memory_bandwidth
        assert newer.compute(Precision.BF16) >= older.compute(Precision.BF16)
        assert newer.usd_per_hour > older.usd_per_hour


def test_a_precision_without_units_is_computed_in_a_wider_one() -> None:
    known = catalogue.builtin()
    assert known.find("A100-80GB").compute(Precision.FP8) == known.find("A100-80GB").flops[Precision.BF16]
    assert known.find("T4").compute(Precision.BF16) == known.find("T4").flops[Precision.FP16]
    assert known.find("H100").compute(Precision.INT4) == known.find("H100").flops[Precision.BF16]


@pytest.mark.parametrize(
    "word", ["H100-80GB", "h100", "NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", "nvidia_h100_80gb_hbm3"]
)
def test_a_device_is_found_as_drivers_labels_and_people_name_it(word: str) -> None:
    assert catalogue.builtin().find(word).name == "H100-80GB"


def test_an_unknown_device_is_told_with_those_that_are_known_and_how_to_add_it() -> None:
    with pytest.raises(ConfigError) as caught:
        catalogue.builtin().find("H10O", where="inventory.yaml:3: nodes[0].gpu")
    message = str(caught.value)
    assert message.startswith("inventory.yaml:3: nodes[0].gpu: unknown device 'H10O', known: T4, L4,")
    assert "did you mean H100-80GB" in message
    assert "devices:" in message


def test_a_bare_name_that_could_be_two_memories_is_nobody() -> None:
    with pytest.raises(ConfigError, match="A100-40GB, A100-80GB"):
        catalogue.builtin().find("A100")


def test_an_override_by_an_alias_changes_only_what_it_says() -> None:
    before, after = catalogue.builtin().find("H100"), described({"H100": {"usd_per_hour": 2.5}}).find("H100-80GB")
    assert after.usd_per_hour == 2.5
    assert (after.flops, after.memory_bytes, after.watts) == (before.flops, before.memory_bytes, before.watts)
    assert catalogue.builtin().find("H100").usd_per_hour == before.usd_per_hour


def test_one_rate_is_overridden_without_losing_the_others() -> None:
    kind = described({"L4": {"tflops": {"fp8": 200}}}).find("L4")
    assert kind.flops[Precision.FP8] == 200e12
    assert kind.flops[Precision.BF16] == 121e12


def test_a_device_of_ones_own_stands_beside_the_known_ones() -> None:
    known = described({"RTX-4090": {**OWN, "aliases": ["NVIDIA-GeForce-RTX-4090"]}})
    kind = known.find("NVIDIA GeForce RTX 4090")
    assert (kind.name, kind.kind, kind.usd_per_hour) == ("RTX-4090", Device.GPU, 0)
    assert kind.memory_bytes == int(23.5 * 2**30)
    assert len(known) == len(catalogue.builtin()) + 1


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({"RTX": {"watts": 450}}, ["RTX", "memory_gib", "tflops", "usd_per_hour"]),
        ({"H200S": {}}, ["did you mean", "H200"]),
        ({"L4": {"watts": 0}}, ["L4.watts", "found 0", "above 0"]),
        ({"L4": {"usd_per_hour": -1}}, ["L4.usd_per_hour", "found -1", "0 or more"]),
        ({"L4": {"watts": True}}, ["found true"]),
        ({"L4": {"memory": 24}}, ["unknown key 'memory'", "memory_gib"]),
        ({"L4": {"tflops": {"bf16": 1}}}, ["unknown key 'bf16'", "bfloat16"]),
        ({"RTX": {**OWN, "tflops": {"fp8": 1}}}, ["RTX.tflops", "bfloat16"]),
        ({"H100": {"watts": 1}, "H100-80GB": {"watts": 2}}, ["H100-80GB", "a second time"]),
        ({"RTX": {**OWN, "aliases": ["L4"]}}, ["inventory: ", "'L4'", "RTX"]),
    ],
)
def test_a_wrong_description_is_told_with_its_place(devices: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        described(devices)
    assert all(word in str(caught.value) for word in words), caught.value


def test_this_cpu_is_measured_in_a_believable_range() -> None:
    kind = catalogue.this_cpu()
    assert kind.kind is Device.CPU
    assert 1 << 28 <= kind.memory_bytes < 1 << 46
    assert 1e9 < kind.memory_bandwidth < 5e12
    assert 1e9 < kind.flops[Precision.FP32] < 1e15
    assert kind.compute(Precision.BF16) == kind.flops[Precision.FP32]


def test_a_containers_limit_counts_and_not_the_machines_memory(tmp_path: Path) -> None:
    machine = this_cpu.memory_bytes(tmp_path / "none", tmp_path)
    group = tmp_path / "pod" / "app"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/pod/app\n")
    (group / "memory.max").write_text("max\n")
    assert this_cpu.memory_bytes(tmp_path / "cgroup", tmp_path) == machine
    (tmp_path / "pod" / "memory.max").write_text("1048576\n")
    assert this_cpu.memory_bytes(tmp_path / "cgroup", tmp_path) == 1 << 20
