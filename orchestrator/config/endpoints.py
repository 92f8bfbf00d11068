"""Hosts and ports as people write them."""

from __future__ import annotations

import ipaddress
import re

from orchestrator.config.cursor import Cursor
from orchestrator.core.spec import Endpoint

LONGEST_NAME = 253
HIGHEST_PORT = 65535
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
OTLP = re.compile(r"https?://(?P<host>\[[^\]\s]+\]|[^/\s:]+)(:(?P<port>\d{1,5}))?/?")
HOSTS = "an IP address or a host name in front of the port"


def is_host(text: str) -> bool:
    """Whether this could be a host: an IP address, or a name that DNS could know. Nothing is looked up."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _is_name(text)
    return True


def _is_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # A name that ends in a number would be taken for an IPv4 address, which it then isn't.
    return len(text) <= LONGEST_NAME and all(map(LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def endpoint(cursor: Cursor) -> Endpoint:
    """ "host:port"; an IPv6 host stands in brackets. Port 0 asks for any free one."""
    allowed = '"host:port", such as "127.0.0.1:8000"'
    host, _, port = cursor.text(allowed).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port:
        raise cursor.wrong(allowed, 'write "0.0.0.0:PORT" for every interface' if port.isdecimal() else "")
    if (":" in host and not bracketed) or any(mark in host for mark in "/ @"):
        raise cursor.wrong(allowed, 'an IPv6 address goes in brackets: "[::1]:8000"' if ":" in host else "")
    if not (port.isascii() and port.isdecimal() and int(port) <= HIGHEST_PORT):
        raise cursor.wrong(f"{allowed}, with a port from 0 to {HIGHEST_PORT}")
    plain = host[1:-1] if bracketed else host
    if bracketed != (":" in plain) or not is_host(plain):
        raise cursor.wrong(f"{allowed}, with {HOSTS}")
    return Endpoint(plain, int(port))


def otlp_endpoint(cursor: Cursor) -> str:
    """The URL of a collector."""
    allowed = "the URL of an OTLP collector's gRPC port, such as http://127.0.0.1:4317, or null"
    text = cursor.text(allowed)
    parts = OTLP.fullmatch(text)
    if not parts or not is_host(parts["host"].strip("[]")) or int(parts["port"] or 0) > HIGHEST_PORT:
        raise cursor.wrong(allowed)
    return text
