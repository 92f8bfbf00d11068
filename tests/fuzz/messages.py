"""Protobuf messages of any shape that their schema allows, and bytes that it does not."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_text = st.one_of(
    st.sampled_from(
        [
            "",
            "together",
            "apart",
            "user",
            "{}",
            '{"type": "object"}',
            "[",
            "a" * 5000,
            "\x00",
            "é\u202e",
            "a+",
            "(" * 500,
            "[" * 5000,
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
_floats = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e300]), st.floats(-3, 3)
)
DEPTH = 4


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = [low, high, high - 1, *(each for each in (-1, 0, 1, 2, 512, 2**31) if low <= each <= high)]
    return st.one_of(st.sampled_from(edges), st.integers(max(low, -5), min(high, 600)))


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _INTEGERS:
        return integers(*_INTEGERS[kind])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _floats
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.one_of(st.sampled_from([each.number for each in field.enum_type.values]), st.just(77))
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return of(field.message_type, depth - 1)
    return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else _text


@st.composite
def of(draw: st.DrawFn, kind: Descriptor, depth: int = DEPTH) -> Message:
    """A message with some of its fields set."""
    message = GetMessageClass(kind)()
    fields = [field for field in kind.fields if depth > 0 or field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE]
    if not fields:
        return message
    for field in draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda each: each.number)):
        _set(draw, message, field, depth)
    return message


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    inside = getattr(message, field.name)
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if is_message and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        for name in draw(st.lists(_one(key, 0), max_size=3)):
            if value.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                inside[name].CopyFrom(draw(_one(value, depth - 1)))
            else:
                inside[name] = draw(_one(value, 0))
    elif field.is_repeated:
        inside.extend(draw(st.lists(_one(field, depth), max_size=3)))
    elif is_message:
        inside.CopyFrom(draw(of(field.message_type, depth - 1)))
    else:
        setattr(message, field.name, draw(_one(field, depth)))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a message after something happened to them."""
    kind = draw(st.sampled_from(["cut", "flip", "put", "twice", "group", "length"]))
    at = draw(st.integers(0, len(whole)))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        return whole[:at] + bytes([draw(st.integers(0, 255))]) + whole[at + 1 :]
    if kind == "put":
        return whole[:at] + draw(st.binary(max_size=8)) + whole[at:]
    if kind == "twice":
        return whole + whole
    if kind == "group":
        return whole + b"\x0b" * draw(st.integers(1, 300))  # groups that begin and never end
    return whole + b"\x0a\xff\xff\xff\xff\x0f"  # a field that says it is 4 GiB long
