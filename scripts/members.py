"""Where the functions of a source name members of enums."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

ENUMS = {"Enum", "IntEnum", "StrEnum"}


def enums_in(tree: ast.Module) -> list[str]:
    """The enums that a source defines."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [each.name for each in classes if any(ast.unparse(base) in ENUMS for base in each.bases)]


def members_named(tree: ast.Module, elsewhere: Collection[tuple[str, str]]) -> list[ast.Attribute]:
    """Each place, the last on a line first; ``elsewhere`` are other modules' enums, as (module, name)."""
    known = set(enums_in(tree))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            known |= {each.asname or each.name for each in node.names if (str(node.module), each.name) in elsewhere}
    found = {
        each
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for each in _run_by(node)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id in known
        if each.attr.isupper()
    }
    return sorted(found, key=lambda each: each.col_offset, reverse=True)


def _run_by(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What runs when it is called, less patterns of ``match`` and strings: 3.11 does not know where their parts are."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.pattern | ast.ClassDef | ast.JoinedStr):
            yield node
            waiting += ast.iter_child_nodes(node)
