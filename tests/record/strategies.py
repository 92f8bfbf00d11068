"""Values of any type that the codec knows, from its own hints: a new event is tested from its first day."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from orchestrator.core import errors

LEAVES = {
    float: st.floats(allow_nan=False),
    int: st.integers(-(2**53), 2**63),
    bool: st.booleans(),
    str: st.text(max_size=20),
    type(None): st.none(),
}
ERRORS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SegueError)),
    key=lambda kind: kind.__name__,
)


def of(hint: Any, **over: Any) -> st.SearchStrategy[Any]:
    """``over``: by name of a leaf's type, another strategy for it."""
    if hint in LEAVES:
        return over.get(hint.__name__, LEAVES[hint])
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([of(kind, **over) for kind in get_args(hint)])
    if get_origin(hint) is Sequence:
        return st.lists(st.integers(0, 2**64 - 1), max_size=6).map(tuple)
    if get_origin(hint) is tuple:
        return st.lists(of(get_args(hint)[0], **over), max_size=4).map(tuple)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    if issubclass(hint, errors.SegueError):
        words = {"where": of(str), "hint": of(str), "retry_after": of(float | None)}
        return st.one_of([st.builds(kind, of(str), **words) for kind in ERRORS])
    hints = get_type_hints(hint)
    return st.builds(hint, **{field.name: of(hints[field.name], **over) for field in dataclasses.fields(hint)})


def told(value: Any) -> Any:
    """All that there is to a value, for comparison: errors have no equality of their own."""
    if isinstance(value, errors.SegueError):
        return value.__reduce__()[1]
    if dataclasses.is_dataclass(value):
        return type(value), [told(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value
