"""Whether jinja2 takes a chat template, set up as where it is rendered. Imported only where there is one."""

from __future__ import annotations

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says; only training makes use of it."""

    tags = {"generation"}  # noqa: RUF012  # declared so by the base

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def flaw(text: str) -> str:
    """What is wrong with a template and where, on one line; empty if nothing is."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    try:
        environment.compile(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {' '.join((error.message or 'not a template').split())}"
    except (SyntaxError, RecursionError):  # of the Python that it is compiled to
        return "blocks are nested too deeply"
    return ""
