"""A request's many names.

Inside, a sequence has the id that vLLM's front end gave it: ``chatcmpl-6f1-0a1b2c3d`` where the answer's own id is
``chatcmpl-6f1``. The suffix keeps equal ids apart; ``0_`` before it counts the sequences of a request with n > 1, and
``-0`` behind it the prompts of a completion (an embedding's texts, a response's turns). Outside, ``x-request-id`` of
the answer or the id of a gRPC call stands for all of them. Logs of workers add half and attempt: ``~p1``, ``~d2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

_PARTS = (
    re.compile(r"^\d+_(.+)$"),
    re.compile(r"^(.+)-[0-9a-f]{8}$"),
    re.compile(r"^((?:cmpl|embd|pooling|classify|score)-.+?)(?:-beam)?-\d+$"),
    re.compile(r"^(resp_.+)_\d+$"),
)
_WIRE = re.compile(r"(~[pdr]\d*)+$")


class Match(IntEnum):
    """How well a name fits; the better one is greater."""

    NONE = 0
    BEGINNING = 1
    WHOLE = 2


def names(request_id: str, client_id: str = "") -> list[str]:
    """Whatever a person may call the request; what all sequences of one request share comes last."""
    found = [request_id]
    for part in _PARTS:
        if whole := part.match(found[-1]):
            found.append(whole[1])
    return [name for name in found if name != client_id] + [client_id] if client_id else found


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
