"""Builds the Python code of the .proto files whenever the package is built or installed. It is never committed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = "orchestrator/proto"


class ProtoBuildHook(BuildHookInterface):
    """Runs before anything is packed, for wheels and for editable installs alike."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))


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
