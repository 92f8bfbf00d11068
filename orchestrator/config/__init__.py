"""YAML -> a validated ClusterSpec, and a ClusterSpec -> what a worker's engine gets. Imports neither vLLM nor Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.codec import dumps, loads
from orchestrator.config.defaults import effective_engine_args
from orchestrator.config.document import Document, read
from orchestrator.config.parse import parse_document
from orchestrator.core.errors import ConfigError
from orchestrator.core.source import PATH_STARTS
from orchestrator.core.spec import ClusterSpec, ModelSpec

__all__ = ["dumps", "effective_engine_args", "load", "loads", "parse"]


def load(path: str | Path) -> ClusterSpec:
    """Read a configuration file.

    Sources and chat templates that start with ``./``, ``../`` or ``~/`` are made absolute, from the file's own folder.

    Raises:
        ConfigError: one line with file, line, key path, what was found and what is allowed.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the file can't be read: {reason}", where=str(path), hint="name a YAML file") from error
    spec = parse_document(read(text, str(path)))
    models = tuple(_anchored(model, file.resolve().parent) for model in spec.models)
    return dataclasses.replace(spec, models=models)


def parse(mapping: Mapping[str, Any], origin: str) -> ClusterSpec:
    """Validate values that are already plain Python; ``origin`` names their place in errors. Paths stay as they are."""
    return parse_document(Document(mapping, origin))


def _anchored(model: ModelSpec, folder: Path) -> ModelSpec:
    options = dict(model.frontend)
    template = options.get("chat_template")
    if isinstance(template, str) and "\n" not in template:
        options["chat_template"] = _absolute(template, folder)
    return dataclasses.replace(model, source=_absolute(model.source, folder), frontend=options)


def _absolute(source: str, folder: Path) -> str:
    return str((folder / Path(source).expanduser()).resolve()) if source.startswith(PATH_STARTS) else source
