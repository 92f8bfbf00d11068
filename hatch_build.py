"""Before anything is packed: the Python code of the .proto files (never committed), and for a wheel native modules.

``SEGUE_COMPILE=0`` makes a wheel of the sources alone. Without it they are compiled where that is possible, and the
build says so where it isn't; with ``SEGUE_COMPILE=1`` that is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = "orchestrator/proto"
COMPILE = "scripts/compile.py"
COMPILE_SECONDS = 1500  # its own bound on the compiler is shorter, and says more
NO_TOOLS = 3  # its exit code where there is nothing to compile with
TOOLS = ["mypy>=2.4,<3", "setuptools>=78"]


class BuildHook(BuildHookInterface):
    """For wheels, source distributions and editable installs. The last run the sources: who edits one runs that."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return TOOLS if self.target_name == "wheel" and _wanted() != "0" else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))
        if self.target_name == "wheel" and version == "standard" and _wanted() != "0":
            self._compile(build_data)

    def _compile(self, build_data: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="segue-native-")  # gone with this hook, after packing
        native = Path(self._folder.name)
        command = [sys.executable, str(Path(self.root, COMPILE)), "--into", str(native)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode == NO_TOOLS and _wanted() != "1":
            self.app.display_warning(f"this wheel has no compiled core and decides at half the speed: {_last(done)}")
        elif done.returncode:
            raise SystemExit(f"{done.stderr}SEGUE_COMPILE=0 makes a wheel without compiled modules")
        else:
            self.app.display_info(done.stdout.strip())
            files = (file for file in native.rglob("*") if file.is_file())
            build_data["force_include"].update({str(file): str(file.relative_to(native)) for file in files})
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def _wanted() -> str:
    """SEGUE_COMPILE: 0, 1, or nothing."""
    value = os.environ.get("SEGUE_COMPILE", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"SEGUE_COMPILE is {value!r}, allowed: 0 (never compile) and 1 (fail if that is not possible)")
    return value


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1].removeprefix("compile: ")


def generate(root: Path) -> None:
    """Messages, their types and the service stubs, beside each .proto file."""
    import grpc_tools
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    includes = [f"-I{root}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    files = sorted(str(file) for file in (root / PROTO).glob("*.proto"))
    if protoc.main(["protoc", *includes, *outputs, *files]):
        raise SystemExit(f"the .proto files in {root / PROTO} do not compile")


if __name__ == "__main__":
    generate(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
