"""No call of ours hands a prompt or a completion to a log or a span: looked up in the source, call by call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGGERS = {"log", "_log", "logger", "LOG", "logging"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
SPAN_CALLS = {"set_attribute", "set_attributes", "add_event", "record_exception"}
TRACING_CALLS = {"start", "record", "note", "fail"}
# Names under which text or tokens travel in this code base.
TEXT = {"prompt", "text", "content", "messages", "token_ids", "new_token_ids", "prompt_token_ids", "body", "payload"}
SOURCES = sorted(
    path for room in ("orchestrator", "workers") for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name
)


def telling_calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            told = (name in LOGGERS and node.func.attr in LEVELS) or (
                name == "tracing" and node.func.attr in TRACING_CALLS
            )
            if told or node.func.attr in SPAN_CALLS:
                yield node


def names_in(node: ast.AST) -> Iterator[str]:
    """Names read by an expression; what is only counted (``len(prompt)``) does not count."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    for child in ast.iter_child_nodes(node):
        yield from names_in(child)


def leaks(source: str) -> list[int]:
    return [
        call.lineno
        for call in telling_calls(ast.parse(source))
        if TEXT & {name for part in (*call.args, *(k.value for k in call.keywords)) for name in names_in(part)}
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_tells_text(path: Path) -> None:
    assert leaks(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "log.info('got %s', request.prompt)",
        "self._log.warning('step', told=output.new_token_ids)",
        "tracing.note(span, said=text[:10])",
        "span.set_attribute('p', f'{content}')",
        "logging.debug(messages[0])",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert leaks(source) == [1]


def test_counting_is_no_telling() -> None:
    assert leaks("log.info('read', prompt_tokens=len(request.prompt))") == []
