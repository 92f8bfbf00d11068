"""A client that behaves: asks the same again and again, next to all that, and keeps count of what it gets.

    python -m tests.fuzz.bystander HOST:PORT

Ends when its stdin does; its last line on stdout is what it saw, as JSON. Times in seconds.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

TOKENS = 90
_BODY = json.dumps(
    {"model": "apart", "prompt": "once upon a time", "max_tokens": TOKENS, "temperature": 0, "stream": True}
)


@dataclass
class Seen:
    """``wrong``: streams whose text differed from the first one's, or that ended otherwise."""

    streams: int = 0
    wrong: int = 0
    longest_gap: float = 0.0
    gap_p99: float = 0.0
    example: str = ""


def events(address: str) -> Iterator[tuple[float, str]]:
    """When each piece of a stream came, and its text."""
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", "/v1/completions", _BODY, {"content-type": "application/json"})
        with connection.getresponse() as response:
            assert response.status == 200, (response.status, response.read()[:300])
            while line := response.readline():
                if line.startswith(b"data: {"):
                    yield time.monotonic(), json.loads(line[6:])["choices"][0]["text"]
                elif line.startswith(b"event: error"):
                    raise AssertionError(response.readline()[:300])


def main() -> None:
    address, seen, gaps, expected = sys.argv[1], Seen(), [], ""
    while not select.select([sys.stdin], [], [], 0)[0]:
        text, before = "", 0.0
        try:
            for at, piece in events(address):
                if before:
                    gaps.append(at - before)
                before, text = at, text + piece
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        expected = expected or text
        seen.streams += 1
        if text != expected or not text:
            seen.wrong, seen.example = seen.wrong + 1, text[:500]
    gaps.sort()
    if gaps:
        seen.longest_gap, seen.gap_p99 = gaps[-1], gaps[int(len(gaps) * 0.99)]
    sys.stdout.write(json.dumps(asdict(seen)) + "\n")


if __name__ == "__main__":
    main()
