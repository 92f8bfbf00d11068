"""A wheel has native modules where they can be made, and says so where they can't; editable installs never have any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tests.compiled.conftest import Copy

MADE = f"orchestrator/core/brain{EXTENSION_SUFFIXES[0]}"
QUICK = f"""
import pathlib, sys
made = pathlib.Path(sys.argv[2], {MADE!r})
made.parent.mkdir(parents=True)
made.write_bytes(b"native")
print("compile: 1 modules")
"""


@pytest.fixture
def checkout(sources: Copy, tmp_path: Path) -> Path:
    """To be packed by whoever needs it."""
    return Path(shutil.copytree(sources.root, tmp_path / "checkout"))


def build(checkout: Path, version: str = "standard", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{version}", "-d", "dist"]
    environment = {**{name: value for name, value in os.environ.items() if name != "SEGUE_COMPILE"}, **environment}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)


def wheel(checkout: Path) -> tuple[str, list[str], str]:
    """The wheel's tag, the native modules in it, and what it says of itself."""
    (file,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as packed:
        names = packed.namelist()
        (about,) = (name for name in names if name.endswith("/WHEEL"))
        return file.stem.split("-", 2)[2], [name for name in names if name.endswith(".so")], packed.read(about).decode()


def test_what_was_compiled_lies_beside_its_source(checkout: Path) -> None:
    (checkout / "scripts" / "compile.py").write_text(QUICK, encoding="utf-8")
    done = build(checkout)
    assert not done.returncode, done.stderr
    tag, native, about = wheel(checkout)
    assert native == [MADE]
    assert tag.startswith(f"cp3{sys.version_info.minor}-")
    assert tag.endswith("linux_x86_64") or "manylinux" in tag
    assert "Root-Is-Purelib: false" in about


def test_without_a_compiler_the_wheel_has_the_sources_and_the_build_says_so(checkout: Path) -> None:
    done = build(checkout, CC="/nowhere/cc")
    assert not done.returncode, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "compiled" in line]
    assert "no compiled core and decides at half the speed: there is no C compiler (/nowhere/cc)" in line
    tag, native, about = wheel(checkout)
    assert (tag, native, "Root-Is-Purelib: true" in about) == ("py3-none-any", [], True)


def test_who_insists_on_a_compiled_core_gets_an_error(checkout: Path) -> None:
    done = build(checkout, CC="/nowhere/cc", SEGUE_COMPILE="1")
    assert done.returncode
    assert "there is no C compiler (/nowhere/cc)" in done.stderr
    assert not list((checkout / "dist").glob("*.whl"))


def test_what_can_not_be_compiled_is_an_error(checkout: Path) -> None:
    """It is a defect, and not a machine on which nothing can be compiled."""
    (checkout / "orchestrator" / "core" / "pace.py").write_text(
        "from dataclasses import dataclass\n@dataclass(kw_only=True)\nclass A: ...\n", encoding="utf-8"
    )
    done = build(checkout)
    assert done.returncode
    assert "compile: orchestrator/core/pace.py:2: " in done.stderr


@pytest.mark.parametrize(("version", "environment"), [("standard", {"SEGUE_COMPILE": "0"}), ("editable", {})])
def test_nothing_is_compiled_where_nobody_wants_it(checkout: Path, version: str, environment: dict[str, str]) -> None:
    (checkout / "scripts" / "compile.py").write_text("raise SystemExit('not wanted')\n", encoding="utf-8")
    done = build(checkout, version, **environment)
    assert not done.returncode, done.stderr
    assert wheel(checkout)[1] == []


def test_another_wish_is_refused(checkout: Path) -> None:
    done = build(checkout, SEGUE_COMPILE="yes")
    assert done.returncode
    assert "SEGUE_COMPILE is 'yes', allowed: 0 (never compile) and 1" in done.stderr
