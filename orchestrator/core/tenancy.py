"""What a tenant may be called."""

from __future__ import annotations

LONGEST_NAME = 128
NAMES = f"1 to {LONGEST_NAME} visible characters"


def is_name(text: str) -> bool:
    """Whether a tenant, or a conversation, may be called so: ``NAMES``, with spaces only in between."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and text.strip() == text
