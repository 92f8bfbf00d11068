"""`segue up --record`: files that were not there before, one for each gateway process."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import foreground, record
from orchestrator.cli.main import main
from orchestrator.controller.assignments import Assigner
from orchestrator.core.slots import Kind, Slot
from orchestrator.core.spec import ClusterSpec, GatewaySpec
from orchestrator.core.types import GatewayAssignment

CONFIG = """
cluster: {{name: test}}
gateway: {{processes: {}}}
models: [{{name: tiny, source: "tiny:llama", pools: {{serve: {{replicas: 1, backend: mock}}}}}}]
"""


def spec(processes: int) -> ClusterSpec:
    return ClusterSpec("test", (), gateway=GatewaySpec(processes=processes))


@pytest.mark.parametrize(("processes", "names"), [(1, ["r"]), (2, ["r.gateway-0", "r.gateway-1"])])
def test_each_gateway_process_gets_its_own_file(tmp_path: Path, processes: int, names: list[str]) -> None:
    recorded = record.into(spec(processes), tmp_path / "r")
    files = [str(tmp_path / name) for name in names]
    assert record.files(recorded) == files
    assigner = Assigner(recorded, "", lambda *_: {})
    orders = [assigner.order(Slot(f"gateway-{n}", Kind.GATEWAY), 1) for n in range(processes)]
    assert [order.record for order in orders if isinstance(order, GatewayAssignment)] == files
    assert not list(tmp_path.iterdir())


def test_without_it_nothing_is_recorded() -> None:
    assert record.files(spec(2)) == []
    order = Assigner(spec(2), "", lambda *_: {}).order(Slot("gateway-0", Kind.GATEWAY), 1)
    assert isinstance(order, GatewayAssignment)
    assert order.record == ""


@pytest.mark.parametrize("name", ["r", "r.gateway-1", "r.epoch-7", "r.gateway-0.epoch-12"])
def test_what_was_recorded_before_is_never_overwritten(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).touch()
    (tmp_path / "c.yaml").write_text(CONFIG.format(2))
    assert main(["up", str(tmp_path / "c.yaml"), "--record", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err == (
        f"segue: {tmp_path / name}: exists (recordings are never overwritten: name another)\n"
    )


def test_other_files_of_a_like_name_are_no_matter(tmp_path: Path) -> None:
    for name in ("r.txt", "recording", "r.gateway-0.gz"):
        (tmp_path / name).touch()
    assert record.into(spec(2), tmp_path / "r").gateway.record == str(tmp_path / "r")


def test_a_folder_that_is_not_there_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(1))
    assert main(["up", str(tmp_path / "c.yaml"), "--record", str(tmp_path / "nowhere" / "r")]) == 2
    assert "nowhere: no folder that can be written to" in capsys.readouterr().err


def test_the_process_that_owns_the_cluster_is_told_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG.format(1))
    seen: list[list[str]] = []

    def run(spec: ClusterSpec, path: Path, address: str | None) -> int:
        seen.append(foreground.owner_command(spec, path, address))
        return 0

    monkeypatch.setattr(foreground, "run", run)
    assert main(["up", "c.yaml", "--record", "r"]) == 0
    assert seen[0][-2:] == ["--record", str(tmp_path / "r")]
    assert main(["up", "c.yaml"]) == 0
    assert "--record" not in seen[1]
