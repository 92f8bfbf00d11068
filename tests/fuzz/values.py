"""Values that nobody should send."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

DEEP = 5000
HUGE_TEXT = "a " * 200_000

# Text that is no word to any parser: lone surrogates, what ends strings elsewhere, marks that turn the writing round.
_ODD = ["", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "\n\r", "\x7f", "💥" * 50, "%s%n", "../../etc/passwd"]
odd_text = st.one_of(st.sampled_from(_ODD), st.text(max_size=20), st.integers(1, 40).map(lambda n: "aé" * 4 ** (n % 8)))
numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.integers(-10, 100),
    st.floats(-3, 3),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, odd_text)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(odd_text, inner, max_size=3)),
    max_leaves=8,
)


class Raw:
    """Text that goes into JSON as it is: what no Python value would become."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Raw({self.text[:60]!r}{'...' * (len(self.text) > 60)})"


raw = st.sampled_from(
    [
        Raw("[" * DEEP + "]" * DEEP),
        Raw('{"a":' * DEEP + "1" + "}" * DEEP),
        Raw("[" * 200 + "]" * 200),
        Raw("9" * 5000),
        Raw("-" + "9" * 5000 + ".5"),
        Raw("1e999"),
        Raw('"\\ud800"'),
        Raw('"\\udc00\\ud800"'),
        Raw(json.dumps(HUGE_TEXT)),
        Raw("{"),
        Raw("tru"),
        Raw("'a'"),
        Raw("0x10"),
        Raw("01"),
        Raw('{"a":1,"a":2}'),
        Raw("[" + "1," * 50_000 + "1]"),
    ]
)
anything = st.one_of(scalars, nested, raw)


def dumps(value: Any, *, ascii_only: bool = True) -> str:
    """JSON that may be none: NaN and surrogates stay, ``Raw`` goes in as it is, a dict's keys may repeat."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Members):
        return (
            "{"
            + ",".join(f"{dumps(k, ascii_only=ascii_only)}:{dumps(v, ascii_only=ascii_only)}" for k, v in value)
            + "}"
        )
    if isinstance(value, dict):
        return dumps(Members(value.items()), ascii_only=ascii_only)
    if isinstance(value, list | tuple):
        return "[" + ",".join(dumps(each, ascii_only=ascii_only) for each in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 70:
        return "1" + "0" * 400
    return json.dumps(value, ensure_ascii=ascii_only)


class Members(list[tuple[str, Any]]):
    """An object's members one after the other; names may repeat."""
