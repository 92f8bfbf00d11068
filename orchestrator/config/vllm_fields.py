"""Make, or compare with the installed vLLM, the list of arguments that a configuration may name.

Importing vLLM takes many seconds, so the check of a configuration reads ``vllm_fields.json`` instead::

    python -m orchestrator.config.vllm_fields --write    # after an upgrade of vLLM
    python -m orchestrator.config.vllm_fields --check    # exit code 1 and the differences, if there are any

A type is a list of alternatives. Each is "null", "bool", "int", "float", "str" or "any", or one of
{"choices": [...]}, {"list": type}, {"map": type of the values}, {"object": {field: type}}.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from orchestrator.config.arguments import DATA

SCALARS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str", Path: "str", Any: "any"}
LISTS = (list, set, tuple)


def describe(hint: Any) -> list[Any]:
    """The alternatives of a type that YAML can write; classes and callables are left out, since it can't."""
    hint = _unwrap(hint)
    if hint in SCALARS:
        return [SCALARS[hint]]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _merged([kind for each in inner for kind in describe(each)])
    if origin is typing.Literal:
        return [{"choices": list(inner)}]
    if origin in LISTS or hint in LISTS:
        return [{"list": describe(inner[0]) if inner else ["any"]}]
    if origin is dict or hint is dict:
        return [{"map": describe(inner[1]) if inner else ["any"]}]
    if isinstance(hint, type):
        return _describe_class(hint)
    return []


def _unwrap(hint: Any) -> Any:
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint


def _describe_class(kind: type) -> list[Any]:
    if issubclass(kind, enum.Enum):
        numbers = [member.value for member in kind] if issubclass(kind, int) else []
        return [{"choices": [*kind.__members__, *numbers]}]
    if dataclasses.is_dataclass(kind):
        return [{"object": fields_of(kind)}]
    return []


def _merged(kinds: list[Any]) -> list[Any]:
    """Without doubles, and with one list of choices: a union of literals reads as one."""
    choices = [choice for kind in kinds if isinstance(kind, dict) for choice in kind.get("choices", ())]
    rest = [kind for kind in kinds if not (isinstance(kind, dict) and "choices" in kind)]
    unique = [kind for place, kind in enumerate(rest) if kind not in rest[:place]]
    return ([{"choices": list(dict.fromkeys(choices))}] if choices else []) + unique


def fields_of(kind: type) -> dict[str, Any]:
    """Field name -> type, of those fields of a dataclass that its constructor takes."""
    scope = dict(vars(sys.modules[kind.__module__]))
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        module = sys.modules.get(base.__module__)
        names = dict(vars(module)) if module else {}
        for name, annotation in vars(base).get("__annotations__", {}).items():
            hints[name] = _evaluate(annotation, {**scope, **names})
    described = {field.name: describe(hints[field.name]) for field in dataclasses.fields(kind) if field.init}
    return {name: kinds for name, kinds in described.items() if kinds}


def _evaluate(annotation: Any, scope: dict[str, Any]) -> Any:
    """An annotation as a type. Names that a module imports for type checkers only are ``Any`` to us."""
    if not isinstance(annotation, str):
        return annotation
    while True:
        try:
            return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), scope)["it"]
        except NameError as error:
            scope = {**scope, str(error.name): Any}


def collect() -> dict[str, Any]:
    """The whole data file, from the installed vLLM."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.transformers_utils.chat_templates.registry import CHAT_TEMPLATES_DIR

    engine, frontend = fields_of(AsyncEngineArgs), fields_of(FrontendArgs)
    engine["reasoning_parser"] = [{"choices": ["", *sorted(ReasoningParserManager.list_registered())]}]
    frontend["tool_call_parser"] = [{"choices": sorted(ToolParserManager.list_registered())}, "null"]
    shipped = {path.name: ["null"] for path in sorted(CHAT_TEMPLATES_DIR.glob("*.jinja"))}
    data = {"engine": engine, "frontend": frontend, "chat_templates": shipped}
    return typing.cast("dict[str, Any]", json.loads(json.dumps(data)))


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line a field that came, went or changed its type."""
    lines = []
    for section in sorted(then.keys() | now.keys()):
        old, new = then.get(section, {}), now.get(section, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                lines.append(f"{section}.{name}: {json.dumps(old.get(name))} -> {json.dumps(new.get(name))}")
    return lines


def _dumps(data: dict[str, Any]) -> str:
    """One line a field, so that a change of vLLM reads well as a diff."""
    sections = []
    for section, fields in data.items():
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(kinds)}" for name, kinds in fields.items())
        sections.append(f"  {json.dumps(section)}: {{\n{rows}\n  }}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    now = collect()
    if options.write:
        DATA.write_text(_dumps(now), encoding="utf-8")
        return 0
    changed = differences(json.loads(DATA.read_text(encoding="utf-8")), now)
    sys.stdout.writelines(f"{line}\n" for line in changed)
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
