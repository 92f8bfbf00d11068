"""``dataclass`` for values that are made many times a request.

A type checker sees the standard library's, frozen. At run time nothing enforces that: a frozen class takes several
times as long to make an instance of, and these are made by the thousand a second.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool, slots: bool) -> Any:
        """The same class, but that nobody is kept from setting an attribute; equal values still hash alike."""
        return dataclasses.dataclass(slots=slots, unsafe_hash=frozen)
