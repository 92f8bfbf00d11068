"""Files that a configuration names: they have to be there, and get their absolute path."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.arguments import known
from orchestrator.config.cursor import Cursor
from orchestrator.core.source import PATH_STARTS
from orchestrator.core.spec import ModelSpec

TEMPLATE_MARKS = "{}\n"  # no path has one of them, every template with something to fill in has


def anchored(cursor: Cursor, model: ModelSpec, folder: Path) -> ModelSpec:
    """The model with absolute paths; ``cursor`` is its place.

    A folder of weights need not be on this machine, so that whoever loads it tells whether it is there.
    """
    source = model.source
    if source.startswith(PATH_STARTS):
        source = str((folder / Path(source).expanduser()).resolve())
    options = _frontend(cursor.find("frontend"), model.frontend, folder)
    return dataclasses.replace(model, source=source, frontend=options)


def _frontend(cursor: Cursor, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    values = dict(options)
    if values.get("chat_template") is not None:
        values["chat_template"] = _template(cursor.find("chat_template"), folder)
    return values


def _template(cursor: Cursor, folder: Path) -> str:
    text = str(cursor.value)
    if any(mark in text for mark in TEMPLATE_MARKS):
        _require_sound(cursor, text, "")
        return text
    file = _found(text, folder)
    if file:
        _require_sound(cursor, _read(cursor, file), f" in {file}")
        return file
    if text in known("chat_templates"):
        return text
    raise cursor.wrong("a template file that is there, or a template's text", _tried(text, folder))


def _require_sound(cursor: Cursor, template: str, place: str) -> None:
    from orchestrator.config import templates

    flaw = templates.flaw(template)
    if flaw:
        raise cursor.error(f"found {flaw}{place}, allowed: a Jinja template")


def _read(cursor: Cursor, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise cursor.wrong("a template file that can be read as UTF-8 text") from error


def _found(path: str, folder: Path) -> str:
    """The file, from the configuration's folder or else from the current one; empty if there is none."""
    for start in (folder, Path.cwd()):
        file = start / Path(path).expanduser()
        if os.path.isfile(file):  # unlike Path.is_file, never raises
            return str(file.resolve())
    return ""


def _tried(path: str, folder: Path) -> str:
    tried = dict.fromkeys(str(start / Path(path).expanduser()) for start in (folder, Path.cwd()))
    return f"no file {' nor '.join(tried)}"
