"""Whether the core runs as native modules, and whether those of a checkout are what its sources say."""

from __future__ import annotations

import hashlib
import json
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = "orchestrator/compiled.json"  # written by scripts/compile.py: digests of the sources, by their paths


def check() -> None:
    """To be called where there is a marker.

    Raises:
        ImportError: a source is not what was compiled, so that other code would run than one reads.
    """
    marker = json.loads((ROOT / MARKER).read_text(encoding="utf-8"))
    if marker["suffix"] not in EXTENSION_SUFFIXES:
        return  # they are for another Python: this one runs the sources
    changed = [name for name, digest in marker["sources"].items() if _digest(ROOT / name) != digest]
    if changed:
        others = f" (nor are {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ImportError(
            f"{changed[0]} is not what was compiled{others}: `make compile` compiles it again, "
            f"`make clean` goes back to the sources [{ROOT}]"
        )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def is_compiled() -> bool:
    """Whether decisions are made by native code here."""
    found = find_spec("orchestrator.core.brain")
    return found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))
