"""For values that are made many times a request: ``dataclass``, and ``mypyc_attr(free_list_len=1)``.

A type checker sees the standard library's dataclass, frozen. At run time nothing enforces that: a frozen class takes
several times as long to make an instance of, and these are made by the thousand a second. Natively a class with a free
list keeps the instance that was freed last for the next one: no memory is looked for, and that one is near.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass

    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def dataclass(*, frozen: bool, slots: bool) -> Any:
        """The same class, but that nobody is kept from setting an attribute; equal values still hash alike."""
        return dataclasses.dataclass(slots=slots, unsafe_hash=frozen)

    def mypyc_attr(*, free_list_len: int) -> Any:
        """The same class: only the compiler, which knows it by this name, makes something of it."""
        return lambda kind: kind
