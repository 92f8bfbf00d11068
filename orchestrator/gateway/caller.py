"""What a client says of itself: whom it asks for, how urgently, in which conversation and until when.

Segue's own headers (over gRPC: metadata of the same names) go before fields of the request, since a proxy in front can
set them; a bad value there is an error. Fields that other APIs define are theirs, and take what clients send: a name
that no tenant could have stands for itself by its hash.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping

from orchestrator.core.errors import InvalidRequest
from orchestrator.core.tenancy import NAMES, is_name
from orchestrator.gateway.context import RequestContext

TENANT, PRIORITY, SESSION, TIMEOUT = "x-segue-tenant", "x-segue-priority", "x-segue-session", "x-request-timeout"
HEADERS = frozenset((TENANT, PRIORITY, SESSION, TIMEOUT))
MOST_URGENT, LEAST_URGENT = -(1 << 31), (1 << 31) - 1  # what the .proto's field holds
LONGEST_SECONDS = 86_400.0


def fill(context: RequestContext, headers: Mapping[str, str], tenant: str = "", session: str = "") -> None:
    """Takes what ``headers`` (names in lower case) say into the context, else the request's own words.

    Raises:
        InvalidRequest: names the header that can't be meant.
    """
    context.tenant = _name(headers, TENANT) or tenant
    context.affinity = _name(headers, SESSION) or session
    if text := headers.get(PRIORITY):
        context.priority = _priority(text)


def deadline(headers: Mapping[str, str]) -> float | None:
    """When ``x-request-timeout`` will be over, on time.monotonic's clock."""
    text = headers.get(TIMEOUT)
    return time.monotonic() + _seconds(text) if text else None


def named(texts: Iterable[str]) -> str:
    """The first of these words of other APIs that says something, as a name; "" if none does."""
    text = next((text for text in texts if text.strip()), "")
    return text if not text or is_name(text) else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _name(headers: Mapping[str, str], header: str) -> str:
    name = headers.get(header, "")
    if name and not is_name(name):
        raise InvalidRequest(f"allowed: {NAMES}", where=header)
    return name


def _priority(text: str) -> int:
    try:
        priority = int(text)
    except ValueError:
        priority = LEAST_URGENT + 1
    if not MOST_URGENT <= priority <= LEAST_URGENT:
        raise InvalidRequest(f"allowed: a whole number from {MOST_URGENT} to {LEAST_URGENT}", where=PRIORITY)
    return priority


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InvalidRequest(f"allowed: seconds above 0, at most {LONGEST_SECONDS:g}", where=TIMEOUT)
    return seconds
