"""What is compiled decides as its sources do, says where it failed, and never runs beside other sources."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compiled.conftest import Copy

pytestmark = pytest.mark.timeout(900)  # the first one compiles

FAILS = """
import linecache, sys, traceback
from orchestrator.core.session import Session, Signal
try:
    Session("r", "m", 1, 0.0, place_by=1.0).advance(Signal.FINISHED, 1.0)
except RuntimeError as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(frame.name, frame.filename, frame.line)
"""
PASSES_ON = """
import copy, pickle
from orchestrator.core.spec import Role
from orchestrator.core.types import ActorSnapshot, WorkerInfo, WorkerState
for value in (WorkerInfo("w", "m", Role.SERVE, "a:1", 2), ActorSnapshot(WorkerState.READY, detail="d")):
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value, value
"""


def test_simulated_runs_are_the_same_to_the_last_digit(sources: Copy, compiled: Copy) -> None:
    ran = json.loads(sources.says("-m", "tests.compiled.runs"))
    assert json.loads(compiled.says("-m", "tests.compiled.runs")) == ran
    assert len({run["trace_hash"] for run in ran.values()}) > 20
    assert any(run["retried"] for run in ran.values())


def test_the_tests_of_what_is_compiled_pass(compiled: Copy) -> None:
    suites = ("tests/core", "tests/sim", "tests/record")
    options = ("-q", "-p", "tests.compiled.native", "-p", "no:cacheprovider")
    done = compiled.python("-m", "pytest", *options, *suites, seconds=800)
    assert not done.returncode, done.stdout[-4000:] + done.stderr


def test_a_failure_names_its_line_of_the_source(compiled: Copy) -> None:
    assert compiled.says("-c", FAILS) == "advance orchestrator/core/session.py raise InvalidTransition(self, signal)\n"


def test_values_go_from_process_to_process(compiled: Copy) -> None:
    compiled.says("-c", PASSES_ON)


def test_the_version_says_which_it_is(sources: Copy, compiled: Copy) -> None:
    assert sources.says("-m", "orchestrator.cli.main", "--version").endswith(" (core not compiled)\n")
    assert compiled.says("-m", "orchestrator.cli.main", "--version").endswith(" (core compiled)\n")


@pytest.fixture
def another(compiled: Copy, tmp_path: Path) -> Copy:
    """A compiled copy to change."""
    return Copy(Path(shutil.copytree(compiled.root, tmp_path / "another", ignore=shutil.ignore_patterns("build"))))


@pytest.mark.parametrize("changed", ["orchestrator/core/brain.py", "orchestrator/core/spec.py"])
def test_a_source_that_changed_is_not_taken_for_what_runs(another: Copy, changed: str) -> None:
    """The second is not compiled, but what is has taken its constants."""
    with (another.root / changed).open("a", encoding="utf-8") as file:
        file.write("# more\n")
    done = another.python("-c", "import orchestrator")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {changed} is not what was compiled: `make compile` compiles it again, ")


def test_clean_goes_back_to_the_sources(another: Copy) -> None:
    (another.root / "orchestrator/core/brain.py").write_text("HERE = True\n", encoding="utf-8")
    subprocess.run(["make", "clean"], cwd=another.root, check=True, capture_output=True, timeout=60)
    another.says("-c", "from orchestrator.core.brain import HERE")
    assert not list(another.root.rglob("*.so"))


def test_compiling_again_takes_no_time(another: Copy) -> None:
    assert another.says("scripts/compile.py").endswith("modules are compiled already\n")
