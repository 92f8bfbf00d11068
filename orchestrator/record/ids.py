"""A request's many names.

Inside, a sequence has the id that vLLM's front end gave it: ``chatcmpl-6f1-0a1b2c3d`` where the answer's own id is
``chatcmpl-6f1``. The suffix keeps equal ids apart, ``0_`` before it counts the sequences of a request with n > 1, and
``-0`` behind the id of a completion its prompts. Outside, the ``x-request-id`` of the answer or the id of a gRPC call
stands for all of them. Logs of workers add the half and the attempt: ``~p0``, ``~d1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

_SIBLING = re.compile(r"^\d+_")
_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_PROMPT = re.compile(r"-\d+$")
_WIRE = re.compile(r"(~[pdr]\d*)+$")


class Match(IntEnum):
    """How well a name fits; the better one is greater."""

    NONE = 0
    BEGINNING = 1
    WHOLE = 2


def names(request_id: str, client_id: str = "") -> list[str]:
    """Whatever a person may call the request, the most specific name first."""
    found = [request_id]
    for pattern in (_SIBLING, _SUFFIX, _PROMPT):
        shorter = pattern.sub("", found[-1])
        if shorter != found[-1]:
            found.append(shorter)
    if client_id and client_id not in found:
        found.append(client_id)
    return found


def match(asked: str, known: Iterable[str]) -> Match:
    """How ``asked`` (an id or its beginning) fits a request with the names ``known``."""
    wanted = _WIRE.sub("", asked)
    best = Match.NONE
    for name in known:
        if name == wanted:
            return Match.WHOLE
        if wanted and name.startswith(wanted):
            best = Match.BEGINNING
    return best
