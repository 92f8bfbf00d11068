"""Source as mypyc can make the most of it: the same program, line by line, with other words where that is faster.

mypyc leaves what ``@dataclass`` generates interpreted, and a call of a generated ``__init__`` costs more than all that
compiling saves. So each dataclass gets its ``__init__`` written out, on the first blank line after it, and its way
through pickle, which native classes lack, on the second; its annotations, which native classes know by half, are told
again at the end. A member of an enum is looked up through its class by code of that class's own kind, hundreds of
instructions a look, so functions get constants of the members that they name. No line moves: a traceback names the
source as it is.
What is not understood is refused, never guessed at.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from dataclasses import dataclass

from members import members_named

VALUES = "orchestrator.core.values"  # its dataclass is, at run time, what this makes of every dataclass
MARK = "mypyc_attr"  # the one other decorator that a dataclass may have: mypyc's own
OURS = ("orchestrator", "workers")
DROPPED = {"frozen", "slots"}  # natively there are slots anyway, and nobody enforces frozen (see VALUES)
KEPT = {"eq", "order", "repr"}
FIELD_OPTIONS = {"compare", "default", "default_factory", "hash", "metadata", "repr"}
EMPTY = {"list": "[]", "dict": "{}"}


class Refused(Exception):  # noqa: N818
    """A form that the transformation does not know: where, and what to write instead."""

    def __init__(self, file: str, line: int, what: str) -> None:
        super().__init__(f"{file}:{line}: {what}")


@dataclass(frozen=True)
class Field:
    name: str
    annotation: ast.expr
    default: ast.expr | None
    line: int


@dataclass(frozen=True)
class Dataclass:
    """One whose ``__init__`` is written out: all of its fields; whether it has a ``__post_init__``."""

    fields: dict[str, Field]
    post: bool


def transform(text: str, file: str, enums: Collection[tuple[str, str]] = ()) -> str:
    """The source to compile, with as many lines before its last class ends.

    Args:
        enums: those that other modules have, as (module, name).

    Raises:
        Refused: a form that it does not know.
    """
    return _Module(text, file).transformed(enums)


class _Module:
    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.tree = ast.parse(text, file)
        self.lines = text.split("\n")
        self.known: dict[str, Dataclass] = {}
        self.last: list[str] = []  # lines for the end
        self.finals = False

    def transformed(self, enums: Collection[tuple[str, str]]) -> str:
        self._imports()
        self._members(enums)
        self._constants()
        top = set(self.tree.body)
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
                if node not in top:
                    self._refuse(node, "a dataclass inside of something: move it to the top of the module")
                names |= self._dataclass(node)
        self._import_for_annotations(names)
        return "\n".join([*self.lines, *self.last, ""] if self.lines[-1] else [*self.lines[:-1], *self.last, ""])

    def _refuse(self, node: ast.stmt | ast.expr | int, what: str) -> None:
        raise Refused(self.file, node if isinstance(node, int) else node.lineno, what)

    def _replace(self, node: ast.stmt | ast.expr, text: str) -> None:
        """Puts other text where a one-line node stands; what is before and after it on the line stays."""
        if node.lineno != node.end_lineno:
            self._refuse(node, f"`{ast.unparse(node)}` has to be on one line")
        line = self.lines[node.lineno - 1].encode()
        self.lines[node.lineno - 1] = (line[: node.col_offset] + text.encode() + line[node.end_col_offset :]).decode()

    def _imports(self) -> None:
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.ImportFrom) or node.module not in (VALUES, "dataclasses"):
                continue
            if any(each.asname and each.name in ("dataclass", "field") for each in node.names):
                self._refuse(node, "dataclass and field keep their names")
            if node.module == VALUES:
                names = {each.name for each in node.names}
                if not names <= {"dataclass", MARK}:
                    self._refuse(node, f"of {VALUES} only dataclass and {MARK} are known")
                known = {"dataclass": "from dataclasses import dataclass", MARK: f"from {VALUES} import {MARK}"}
                self._replace(node, "; ".join(known[name] for name in sorted(names)))

    def _members(self, enums: Collection[tuple[str, str]]) -> None:
        """Members of enums that functions name become constants, at the end; patterns of ``match`` can't name those."""
        found = members_named(self.tree, enums)
        for each in found:
            self._replace(each, ast.unparse(each).replace(".", "_MEMBER_"))
        names = sorted({ast.unparse(each) for each in found})
        self.last += [f"{name.replace('.', '_MEMBER_')}: Final = {name}" for name in names]
        self.finals = self.finals or bool(names)

    def _constants(self) -> None:
        """Numbers in capitals are Final: mypyc then puts them where they are used, and looks up no name."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name.isupper() and self._is_number(node.value):
                    self._replace(node.targets[0], f"{name}: Final")
                    self.finals = True
        if self.finals:
            future = next(
                (n for n in self.tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"), None
            )
            if future is None:
                self._refuse(1, "it has to begin with `from __future__ import annotations`")
            self._replace(future, f"{ast.unparse(future)}; from typing import Final")

    def _is_number(self, value: ast.expr) -> bool:
        """A literal, or what is worked out of literals: nothing that another module or test could have changed."""
        if isinstance(value, ast.Constant):
            return type(value.value) in (int, float)
        if isinstance(value, ast.BinOp):
            return self._is_number(value.left) and self._is_number(value.right)
        return isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub) and self._is_number(value.operand)

    def _dataclass(self, node: ast.ClassDef) -> set[str]:
        """Rewrites one class; the names that its fields' annotations need at run time."""
        own, fields = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}, self._fields(node)
        if "__init__" in own:
            self._refuse(node, f"{node.name} has an __init__ of its own: it needs no @dataclass")
        base = self._base(node)
        self._decorator(node, writes=base is not None)
        after = []
        if base is not None:
            every = Dataclass({**base.fields, **fields}, base.post or "__post_init__" in own)
            self.known[node.name] = every
            if every.fields or every.post:
                after.append(self._init(every))
            after.append(self._reduce(every))
        self._put_after(node, after)
        told = {
            each.target.id: ast.unparse(each.annotation)
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        self.last.append(f'setattr({node.name}, "__annotations__", {told!r})')
        annotations = [entry.annotation for entry in fields.values()]
        return {each.id for kind in annotations for each in ast.walk(kind) if isinstance(each, ast.Name)}

    def _base(self, node: ast.ClassDef) -> Dataclass | None:
        """What it inherits; None if that is not known here: then its ``__init__`` stays as dataclasses make it."""
        if not node.bases:
            return Dataclass({}, post=False)
        return self.known.get(ast.unparse(node.bases[0])) if len(node.bases) == 1 else None

    def _decorator(self, node: ast.ClassDef, *, writes: bool) -> None:
        others = [each for each in node.decorator_list if ast.unparse(each).partition("(")[0] != MARK]
        if len(others) > 1:
            self._refuse(others[0], f"{node.name} has other decorators than @dataclass")
        decorator = others[0]
        options: dict[str, bool] = {}
        callee: ast.expr = decorator
        if isinstance(decorator, ast.Call):
            callee = decorator.func
            for option in decorator.keywords:
                known = option.arg in DROPPED | KEPT
                if not known or not isinstance(option.value, ast.Constant) or not isinstance(option.value.value, bool):
                    self._refuse(option.value, f"@dataclass of {node.name}: `{ast.unparse(option)}` is not known")
                options[str(option.arg)] = option.value.value  # type: ignore[attr-defined]
        if not isinstance(callee, ast.Name) or callee.id != "dataclass" or getattr(decorator, "args", []):
            self._refuse(decorator, f"`{ast.unparse(decorator)}` of {node.name} is not known: write @dataclass(...)")
        made = {name: value for name, value in options.items() if name in KEPT}
        if options.get("frozen") and options.get("eq", True):
            made["unsafe_hash"] = True
        if writes:
            made["init"] = False
        words = ", ".join(f"{name}={value}" for name, value in made.items())
        self._replace(decorator, f"dataclass({words})" if words else "dataclass")

    def _fields(self, node: ast.ClassDef) -> dict[str, Field]:
        fields = {}
        for each in node.body:
            if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
                continue
            words = ast.unparse(each.annotation)
            if any(isinstance(getattr(part, "value", None), str) for part in ast.walk(each.annotation)):
                self._refuse(each, f"{node.name}.{each.target.id}: an annotation in quotes is not known")
            if "InitVar" in words or "KW_ONLY" in words:
                self._refuse(each, f"{node.name}: `{words}` is not known")
            if "ClassVar" not in words:
                fields[each.target.id] = Field(each.target.id, each.annotation, each.value, each.lineno)
        return fields

    def _init(self, made: Dataclass) -> str:
        parameters, body = ["self"], []
        for entry in made.fields.values():
            parameter, value = self._parameter(entry)
            parameters.append(parameter)
            body.append(f"self.{entry.name} = {value}")
        if made.post:
            body.append("self.__post_init__()")
        return f"def __init__({', '.join(parameters)}) -> None: {'; '.join(body)}"

    def _parameter(self, entry: Field) -> tuple[str, str]:
        """A field as a parameter, and the value that it gets."""
        kind, default = ast.unparse(entry.annotation), entry.default
        if isinstance(default, ast.Call) and isinstance(default.func, ast.Name) and default.func.id == "field":
            options = {str(each.arg): each.value for each in default.keywords}
            if default.args or not set(options) <= FIELD_OPTIONS:
                self._refuse(entry.line, f"{entry.name}: of field() only {', '.join(sorted(FIELD_OPTIONS))} are known")
            if "default_factory" in options:
                return self._made(entry, kind, options["default_factory"])
            default = options.get("default")
        if default is None:
            return f"{entry.name}: {kind}", entry.name
        if any(self._made_anew(part) for part in ast.walk(default)):
            self._refuse(entry.line, f"{entry.name}: of defaults only values are known, and calls of classes")
        return f"{entry.name}: {kind} = {ast.unparse(default)}", entry.name

    @staticmethod
    def _made_anew(part: ast.AST) -> bool:
        """Whether each look at a default might be another thing. Calls of one class are equal."""
        if isinstance(part, ast.Call):
            name = ast.unparse(part.func).split(".")[-1]
            return name not in ("frozenset", "tuple") and not name.lstrip("_")[:1].isupper()
        return isinstance(part, ast.List | ast.Dict | ast.Set | ast.Lambda)

    def _made(self, entry: Field, kind: str, factory: ast.expr) -> tuple[str, str]:
        if {"None", "Any", "object"} & set(kind.split(" | ")) or "Optional" in kind:
            self._refuse(entry.line, f"{entry.name}: with a default_factory it must not be able to be None")
        if isinstance(factory, ast.Lambda):
            made = f"({ast.unparse(factory.body)})"
        elif isinstance(factory, ast.Name | ast.Attribute):
            made = EMPTY.get(ast.unparse(factory), f"{ast.unparse(factory)}()")
        else:
            self._refuse(entry.line, f"{entry.name}: a default_factory has to be a name or a lambda")
        return f"{entry.name}: {kind} | None = None", f"{entry.name} if {entry.name} is not None else {made}"

    @staticmethod
    def _reduce(made: Dataclass) -> str:
        """How pickle and copy take it apart."""
        values = "".join(f"self.{name}, " for name in made.fields)
        return f"def __reduce__(self) -> tuple[object, ...]: return (type(self), ({values}))"

    def _put_after(self, node: ast.ClassDef, texts: list[str]) -> None:
        end = node.end_lineno or node.lineno
        pad = " " * node.body[0].col_offset
        for index, text in enumerate(texts, end):
            if index == len(self.lines):
                self.lines.append("")
            if self.lines[index].strip():
                self._refuse(index + 1, f"{node.name} needs {len(texts)} blank lines after it")
            self.lines[index] = pad + text

    def _import_for_annotations(self, names: set[str]) -> None:
        """A dataclass' annotations are looked up when its class is made: so what they name has to be there."""
        for block in self.tree.body:
            if not isinstance(block, ast.If) or ast.unparse(block.test) not in (
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            ):
                continue
            for each in block.body:
                if not isinstance(each, ast.ImportFrom):
                    continue
                for alias in each.names:
                    name = alias.asname or alias.name
                    if name not in names:
                        continue
                    if str(each.module).split(".")[0] in OURS:
                        self._refuse(each, f"a dataclass' field is a {name}, which is imported for type checkers only")
                    self._import(block, f"from {each.module} import {alias.name} as {name}")

    def _import(self, block: ast.If, text: str) -> None:
        """Adds an import to the line of one before this block."""
        places = [each for each in self.tree.body if isinstance(each, ast.ImportFrom) and each.lineno < block.lineno]
        before = [each for each in places if each.lineno == each.end_lineno and each.module != "__future__"]
        if not before:
            self._refuse(block, "there is no import on one line before it to add one to")
        line = before[0].lineno - 1
        code, comment, rest = self.lines[line].partition("  #")
        self.lines[line] = f"{code}; {text}{comment}{rest}"
