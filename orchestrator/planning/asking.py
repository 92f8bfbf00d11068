"""What has to be known before a configuration can be planned: its models' shapes, without any weights, and devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from orchestrator import models
from orchestrator.config import effective_engine_args
from orchestrator.core.errors import ModelSourceError
from orchestrator.core.planning.places import Node
from orchestrator.core.planning.plan import Asked, Inventory, cpu_parts
from orchestrator.core.planning.settings import settings_of
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import index_total, stored_total
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec
from orchestrator.models.cache import Progress
from orchestrator.planning import catalogue, inventory

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"  # of a model of several files, and of one
MOST_HEADER_BYTES = 100 << 20  # of a safetensors file: a limit of the format itself


def asked(spec: ClusterSpec, progress: Progress) -> dict[str, Asked]:
    """By name, all models that have weights.

    Raises:
        ModelSourceError: a config.json can't be had.
        ConfigError: it can't be understood, or an engine argument is wrong.
    """
    return {model.name: _asked(model, progress) for model in spec.models if not _is_mock(model)}


def _is_mock(model: ModelSpec) -> bool:
    return all(pool.backend is Backend.MOCK for pool in model.pools.values())


def _asked(model: ModelSpec, progress: Progress) -> Asked:
    progress(f"reading {model.source}")
    place = models.prepare(model.source, progress)
    folder = Path(place)
    if folder.is_dir():
        config, stored = _json(folder / "config.json"), _stored(folder)
    else:
        file = _downloaded(place, "config.json")
        if file is None:
            raise ModelSourceError("the repository has no config.json", where=place, hint="name one of a model")
        config, stored = _json(file), _weighed(place, file.parent)
    settings = {
        role: settings_of(
            effective_engine_args(model, pool),
            f"models.{model.name}.pools.{role}.engine",
            share=pool.share,
            stored_bytes=stored,
        )
        for role, pool in model.pools.items()
    }
    return Asked(shape_of(config, f"{model.source} config.json"), settings)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"it can't be read: {error}", where=str(file), hint="it has to be JSON") from error
    if not isinstance(value, dict):
        raise ModelSourceError("it is no JSON object", where=str(file), hint="take the model's own")
    return value


def _stored(folder: Path) -> int | None:
    """Bytes of a folder's tensors, from its index or the files' headers; None if it has no safetensors."""
    if (folder / INDEX).is_file() and (total := index_total(_json(folder / INDEX))):
        return total
    totals = [stored_total(_header(file)) for file in sorted(folder.glob("*.safetensors"))]
    return sum(totals) or None


def _header(file: Path) -> Mapping[str, tuple[str, list[int]]]:
    """A safetensors file's tensors: 8 bytes of length, then JSON (the format's own specification)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MOST_HEADER_BYTES)))
        return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelSourceError(f"its header can't be read: {error}", where=str(file), hint="fetch it again") from error


def _weighed(model_id: str, snapshot: Path) -> int | None:
    """Bytes of a repository's tensors; None if it doesn't say them, as a model of one file has no index."""
    if (snapshot / WHOLE).is_file():
        return stored_total(_header(snapshot / WHOLE))
    index = _downloaded(model_id, INDEX)
    return None if index is None else index_total(_json(index))


def _downloaded(model_id: str, file: str) -> Path | None:
    """None if the repository has no such file; ModelSourceError where that can't be found out.

    What is here already is not asked for again: without a network that takes half a minute a file.
    """
    here = try_to_load_from_cache(model_id, file)
    if isinstance(here, str):
        return Path(here)
    try:
        return Path(hf_hub_download(model_id, file))
    except (EntryNotFoundError, OSError, ValueError) as error:  # all of the hub's own are among these
        unreached = isinstance(error, LocalEntryNotFoundError)
        if unreached and try_to_load_from_cache(model_id, file) is _CACHED_NO_EXIST:
            return None
        if isinstance(error, EntryNotFoundError) and not unreached:
            return None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "fetch it where there is a network (hf download), or name a folder that has the model's config.json"
        raise ModelSourceError(f"{file} can't be had: {first}", where=model_id, hint=hint) from error


def devices(spec: ClusterSpec, file: str | None) -> Inventory:
    """What an inventory file has; without one, this machine's CPU for pools on CPUs, and GPUs as they can be bought.

    Workers on CPUs share a machine, so its CPU counts as that many equal parts.
    """
    if file is not None:
        read = inventory.load(file)
        return Inventory(read.nodes, read.catalogue)
    known = catalogue.builtin()
    parts = cpu_parts(model for model in spec.models if not _is_mock(model))
    if not parts:
        return Inventory((), known, buys=True)
    cpu = catalogue.this_cpu(parts)
    here = Node("this-machine", cpu.name, parts, shared_bytes=cpu.memory_bytes)
    return Inventory((here,), known.extended((cpu,)), buys=True)
