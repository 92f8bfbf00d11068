"""What the documents name is there: files, modules, commands and their options."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "helm" / "segue" / "README.md"]
FOLDERS = ("tests", "benchmarks", "scripts", "configs", "docs", "orchestrator", "workers", "deploy", "requirements")
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The way of")[0]


def modules() -> list[Path]:
    files = [file for folder in ("orchestrator", "workers") for file in (ROOT / folder).rglob("*.py")]
    return [
        file.relative_to(ROOT).with_suffix("")
        for file in files
        if "__" not in file.name and "_pb2" not in file.name and "policies" not in file.parts  # a file a policy
    ]


def of_map(folder: Path) -> set[str]:
    """The names in the part of the map that a folder's modules stand in."""
    parts = re.split(r"^### ", MAP, flags=re.MULTILINE)
    own = [part for part in parts if f"`{folder.as_posix()}`" in part]
    rest = [part for part in parts if part.startswith("The rest")]
    return {name for part in own or rest for name in re.findall(r"`([^`]+)`", part)}


def test_the_map_has_every_module() -> None:
    def is_named(module: Path) -> bool:
        names = of_map(module.parent)
        # In the table of the rest, `config/parse`, `document` are of one folder.
        return any(fnmatch.fnmatch(each, name) for name in names for each in (module.name, "/".join(module.parts[-2:])))

    missing = [module.as_posix() for module in modules() if not is_named(module)]
    assert not missing, "docs/architecture.md does not name these"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_are_there(document: Path) -> None:
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]+\w", document.read_text(encoding="utf-8"))
    assert not {name for name in named if not [*ROOT.glob(name), *ROOT.glob(f"{name}.py")]}


def commands() -> Iterator[tuple[str, str]]:
    """The document, and the line, of each call of segue in a block of text."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```.*?^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if found := re.match(r"\s*(?:\$ )?(?:.* -- )?(segue [a-z].*)", line.partition(" #")[0]):
                    yield document.name, found[1]


@pytest.mark.parametrize(("document", "line"), [*commands()])
def test_commands_in_documents_are_understood(document: str, line: str) -> None:
    build_parser().parse_args(shlex.split(line)[1:])


def test_commands_are_found() -> None:
    assert len([*commands()]) > 12
