"""Compile what decides, and what simulates it, to native modules by mypyc: ``make compile``.

The sources are the truth: they run as they are, with the same results, at about half the speed. A transformed copy
(``transform``) is compiled in a build folder; the modules go beside the sources, or with ``--into`` to a folder that a
wheel is packed from. Standard library, mypy and setuptools only: nothing of the product is imported.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from members import enums_in
from transform import Refused, transform

# What is compiled: all that runs many times a request, so all modules of these folders but those named below. A folder
# is added by a line here; see to it that its tests also run compiled (tests/compiled).
FOLDERS = ("orchestrator/core", "orchestrator/core/policies", "orchestrator/sim")
SOURCE_ONLY = {
    "native classes can't be exceptions": {
        "orchestrator/core/errors.py",
        "orchestrator/core/defects.py",
        "orchestrator/sim/promise.py",
    },
    "stands in for dataclasses, which compiled modules use themselves": {"orchestrator/core/values.py"},
    "made once, of a configuration": {"orchestrator/core/spec.py"},
    "the controller's, once a second": {
        "orchestrator/core/announcing.py",
        "orchestrator/core/changeable.py",
        "orchestrator/core/course.py",
        "orchestrator/core/election.py",
        "orchestrator/core/notice.py",
        "orchestrator/core/readiness.py",
        "orchestrator/core/reconcile.py",
        "orchestrator/core/rollout.py",
        "orchestrator/core/scene.py",
        "orchestrator/core/slots.py",
        "orchestrator/core/source.py",
    },
    "before a run or after it": {
        "orchestrator/sim/chart.py",
        "orchestrator/sim/generate.py",
        "orchestrator/sim/plot.py",
        "orchestrator/sim/report.py",
        "orchestrator/sim/traces.py",
    },
}
ROOT = Path(__file__).resolve().parent.parent
MARKER = "orchestrator/compiled.json"  # orchestrator/compiled.py reads it
LIBRARY = "segue"  # segue__mypyc.*.so holds all code; the modules beside the sources only lead there
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
COMPILE_SECONDS = 1200
# Nobody takes the place of a function of ours when it is loaded: so calls go straight there, or are no calls at all.
FLAGS = ["-fvisibility=hidden", "-fno-semantic-interposition", "-fno-plt"]
NO_TOOLS = 3  # exit code: there is nothing to compile with
SETUP = """
from mypyc.build import mypycify
from setuptools import setup

paths = {paths!r}
# Types are checked by `make lint`; here only what mypyc itself needs to know, with or without what others wrote.
options = ["--ignore-missing-imports", "--follow-imports=silent", "--cache-dir=.mypy_cache", "--config-file="]
made = mypycify([*options, *paths], opt_level="3", debug_level="0", group_name={library!r})
for each in made:
    each.extra_compile_args += {flags!r}
setup(name="compiled", packages=[], py_modules=[], ext_modules=made)
"""


class CompileError(Exception):
    """What went wrong, for people; ``code`` is the exit code."""

    def __init__(self, what: str, code: int = 1) -> None:
        super().__init__(what)
        self.code = code


def modules(root: Path) -> list[str]:
    """The sources that are compiled, relative to the root."""
    left_out = set().union(*SOURCE_ONLY.values())
    gone = sorted(file for file in left_out if not (root / file).is_file())
    if gone:
        raise CompileError(f"scripts/compile.py leaves out {gone[0]}, which is not there")
    files = [file for folder in FOLDERS for file in sorted((root / folder).glob("*.py")) if file.name != "__init__.py"]
    return [name for file in files if (name := file.relative_to(root).as_posix()) not in left_out]


def digests(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Of all that the native modules were made from: the sources, and those that they take constants and types from."""
    used = {*names, *(imported for name in names for imported in _imports(root, name))}
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in sorted(used)}


def _imports(root: Path, name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "orchestrator":
            base = node.module.replace(".", "/")
            for path in (f"{base}.py", *(f"{base}/{alias.name}.py" for alias in node.names)):
                if (root / path).is_file():
                    yield path


def _module(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".")


def check_tools() -> None:
    """There is a mypyc, and a C compiler that finds Python's headers."""
    for tool in ("mypyc", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            raise CompileError(f"{tool} is not installed here", NO_TOOLS)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None:
        raise CompileError(f"there is no C compiler ({compiler[0]})", NO_TOOLS)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n", encoding="utf-8")
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler, include, "-fPIC", "-shared", str(source), "-o", str(source.with_suffix(".so"))]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if tried.returncode:
        first = next((line for line in tried.stderr.splitlines() if "error" in line), f"exit code {tried.returncode}")
        raise CompileError(f"the C compiler ({compiler[0]}) can't build a Python module: {first.strip()}", NO_TOOLS)


def build(root: Path, folder: Path) -> list[Path]:
    """Compiles into a folder that is made anew; what it made, relative to that folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        root / "orchestrator", folder / "orchestrator", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    names = modules(root)
    texts = {name: (root / name).read_text(encoding="utf-8") for name in digests(root, names)}
    enums = {(_module(name), each) for name, text in texts.items() for each in enums_in(ast.parse(text))}
    for name in names:
        (folder / name).write_text(transform(texts[name], name, enums), encoding="utf-8")
    (folder / "setup.py").write_text(SETUP.format(paths=names, library=LIBRARY, flags=FLAGS), encoding="utf-8")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "MYPYPATH": ""}
    made = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMPILE_SECONDS, errors="replace"
    )
    if made.returncode:
        raise CompileError("mypyc failed:\n" + "\n".join((made.stdout + made.stderr).splitlines()[-40:]))
    found = [
        file.relative_to(folder) for each in (".", *FOLDERS) for file in sorted((folder / each).glob(f"*{SUFFIX}"))
    ]
    wanted = {name.removesuffix(".py") + SUFFIX for name in names} | {f"{LIBRARY}__mypyc{SUFFIX}"}
    if {file.as_posix() for file in found} != wanted:
        raise CompileError(f"mypyc made {len(found)} modules, and {len(wanted)} were asked for")
    return found


def in_place(root: Path) -> list[Path]:
    """Native modules in a checkout, for any Python."""
    return [*root.glob(f"{LIBRARY}__mypyc*.so"), *(file for each in FOLDERS for file in (root / each).glob("*.so"))]


def install(root: Path, folder: Path, made: list[Path], marker: str) -> None:
    """Puts them beside the sources, without harm to processes that run the old ones. The marker is there first."""
    (root / MARKER).write_text(marker, encoding="utf-8")
    for old in set(in_place(root)) - {root / file for file in made}:
        old.unlink()
    for file in made:
        beside = root / f"{file}.new"
        shutil.copy2(folder / file, beside)
        beside.replace(root / file)


def compile_checkout(root: Path) -> str:
    """In place; what was done, for people."""
    began = time.monotonic()
    names = modules(root)
    marker = json.dumps({"suffix": SUFFIX, "sources": digests(root, names)}, indent=1) + "\n"
    wanted = {root / (name.removesuffix(".py") + SUFFIX) for name in names} | {root / f"{LIBRARY}__mypyc{SUFFIX}"}
    there = (root / MARKER).is_file() and (root / MARKER).read_text(encoding="utf-8") == marker
    if there and set(in_place(root)) == wanted:
        return f"{len(names)} modules are compiled already"
    check_tools()
    folder = root / "build" / "compiled"
    install(root, folder, build(root, folder), marker)
    return f"{len(names)} modules in {time.monotonic() - began:.0f} s; `make clean` goes back to the sources"


def compile_into(root: Path, folder: Path) -> str:
    """Into a folder that then holds nothing but native modules, as they lie in a wheel."""
    check_tools()
    with tempfile.TemporaryDirectory() as work:
        for file in build(root, Path(work, "compiled")):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(work, "compiled", file), folder / file)
    return f"{len(modules(root))} modules"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="put them here instead of beside the sources")
    options = parser.parse_args()
    try:
        done = compile_into(ROOT, options.into.resolve()) if options.into else compile_checkout(ROOT)
    except (CompileError, Refused) as error:
        sys.stderr.write(f"compile: {error}\n")
        return getattr(error, "code", 1)
    sys.stdout.write(f"compile: {done}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
