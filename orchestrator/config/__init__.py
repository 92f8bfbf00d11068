"""YAML -> a validated ClusterSpec, and a ClusterSpec -> what a worker's engine gets. Imports neither vLLM nor Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config import files
from orchestrator.config.codec import digest, dumps, loads
from orchestrator.config.cursor import Cursor
from orchestrator.config.defaults import effective_engine_args
from orchestrator.config.document import Document, read
from orchestrator.config.endpoints import endpoint
from orchestrator.config.parse import parse_document
from orchestrator.config.planning import closed
from orchestrator.config.written import checked
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import ClusterSpec, Endpoint

__all__ = ["checked", "closed", "digest", "dumps", "effective_engine_args", "endpoint_of", "load", "loads", "parse"]


def endpoint_of(text: str, where: str) -> Endpoint:
    """HOST:PORT from elsewhere than a file, such as the command line. Raises ConfigError that names ``where``."""
    return endpoint(Cursor(Document(text, where)))


def load(path: str | Path) -> ClusterSpec:
    """Read a configuration file.

    Sources that start with ``./``, ``../`` or ``~/`` are made absolute, from the file's own folder. So are the files of
    chat templates and plugins, which have to be there: in that folder, or else from the current one.

    Raises:
        ConfigError: one line with file, line, key path, what was found and what is allowed.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the file can't be read: {reason}", where=str(path), hint="name a YAML file") from error
    document = read(text, str(path))
    spec = parse_document(document)
    places = Cursor(document).find("models").items()
    folder = file.resolve().parent
    models = tuple(files.anchored(place, model, folder) for place, model in zip(places, spec.models, strict=True))
    return dataclasses.replace(spec, models=models)


def parse(mapping: Mapping[str, Any], origin: str) -> ClusterSpec:
    """Validate values that are already plain Python; ``origin`` names their place in errors. Paths stay as they are."""
    return parse_document(Document(mapping, origin))
