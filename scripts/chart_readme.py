"""Write the table of values in the chart's README.md from values.yaml; ``--check`` only says whether it is current."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "segue"
BEGIN, END = "<!-- values: written by scripts/chart_readme.py -->", "<!-- end of values -->"
WHOLE = ("podSecurityContext", "securityContext", "requests", "limits")  # as one row each


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Key path, default as JSON, comment: of every key that has a comment."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    yield from _rows(root, "", lines)


def _rows(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        comment = lines[key.start_mark.line].partition("  #")[2].strip()
        if (
            isinstance(value, yaml.MappingNode)
            and value.value
            and not _is_leaf(value, lines)
            and key.value not in WHOLE
        ):
            if comment:
                yield name, "", comment
            yield from _rows(value, name, lines)
        elif comment or key.value in WHOLE:
            plain = yaml.SafeLoader("").construct_document(value)
            yield name, json.dumps(plain), comment


def _is_leaf(node: yaml.MappingNode, lines: list[str]) -> bool:
    """Whether none of its keys has a comment of its own."""
    return not any(
        "  #" in lines[line] for line in range(node.start_mark.line, node.end_mark.line + 1) if line < len(lines)
    )


def table() -> str:
    found = rows((CHART / "values.yaml").read_text(encoding="utf-8"))
    body = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {comment.replace('|', chr(92) + '|')} |"
        for name, default, comment in found
    ]
    return "\n".join([BEGIN, "", "| Key | Default | |", "|---|---|---|", *body, "", END])


def main() -> int:
    file = CHART / "README.md"
    text = file.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    current = before + table() + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if current != text:
            print("the table of values is not current: python scripts/chart_readme.py")  # noqa: T201
        return int(current != text)
    file.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
