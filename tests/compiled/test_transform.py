"""The copy that is compiled is the same program on the same lines, or there is none."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
import types
import typing
from pathlib import Path
from typing import Any, ClassVar

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # where it finds the others
_SPEC = importlib.util.spec_from_file_location("transform", SCRIPTS / "transform.py")
assert _SPEC is not None
assert _SPEC.loader is not None
transformation = importlib.util.module_from_spec(_SPEC)
sys.modules["transform"] = transformation
_SPEC.loader.exec_module(transformation)

HEAD = "from __future__ import annotations\nfrom typing import Any, ClassVar, TYPE_CHECKING\n"


def transform(body: str) -> str:
    return transformation.transform(HEAD + body, "a.py")


def run(body: str) -> Any:
    """A module of what the transformation makes of a source."""
    module = types.ModuleType("a_transformed_module")
    sys.modules[module.__name__] = module
    exec(transform(body), module.__dict__)  # noqa: S102
    return module


SHAPES = """from dataclasses import dataclass, field

@dataclass(slots=True, eq=False)
class Base:
    first: int
    second: str = "two"


@dataclass(frozen=True, slots=True)
class Value:
    base: Base
    low, high = 1, 2
    kind: ClassVar[str] = "value"
    many: list[int] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=lambda: {"a": 1})
    own: Base = field(default_factory=lambda: Base(7))
    maybe: int | None = None


@dataclass(slots=True)
class Derived(Base):
    third: float = 3.0
    second: str = "three"

    def __post_init__(self) -> None:
        self.first += 1


@dataclass(frozen=True, slots=True)
class Empty:
    '''Nothing in it.'''


LAST = Empty()
"""


def test_what_is_made_is_as_it_was():
    shapes = run(SHAPES)
    value = shapes.Value(base := shapes.Base(1), maybe=3)
    assert (value.base, value.many, value.made, value.own.first, value.maybe) == (base, [], {"a": 1}, 7, 3)
    assert value.many is not shapes.Value(base).many
    assert shapes.Value(base, [1], {}).made == {}
    assert (shapes.Base(1).second, shapes.Base(1) == shapes.Base(1)) == ("two", False)


def test_a_class_that_inherits_has_its_bases_fields_first():
    derived = run(SHAPES).Derived(1)
    assert (derived.first, derived.second, derived.third) == (2, "three", 3.0)
    assert repr(derived) == "Derived(first=2, second='three', third=3.0)"


def test_annotations_are_told_in_full():
    shapes = run(SHAPES)
    assert typing.get_type_hints(shapes.Value)["made"] == dict[str, int]
    assert typing.get_type_hints(shapes.Value)["kind"] == ClassVar[str]


def test_equal_values_hash_alike():
    shapes = run(SHAPES)
    assert hash(shapes.Empty()) == hash(shapes.Empty())
    assert shapes.Empty() == shapes.LAST


def test_they_pass_through_pickle_and_copy():
    shapes = run(SHAPES)
    value = shapes.Value(shapes.Base(1), maybe=3)
    assert pickle.loads(pickle.dumps(value)).base.first == 1  # noqa: S301
    assert copy.deepcopy(value).maybe == 3
    assert pickle.loads(pickle.dumps(shapes.Empty())) == shapes.Empty()  # noqa: S301


def test_no_line_moves():
    before, after = (HEAD + SHAPES).splitlines(), transform(SHAPES).splitlines()
    changed = [old for old, new in zip(before, after, strict=False) if old != new]
    assert {line for line in changed if line} == {line for line in before if line.startswith("@dataclass")}


def test_a_class_at_the_end_of_the_file_gets_lines_of_its_own():
    source = "from dataclasses import dataclass\n\n@dataclass\nclass Last:\n    one: int\n"
    assert run(source).Last(1).one == 1
    assert transform(source).startswith(HEAD + "from dataclasses import dataclass\n\n@dataclass(init=False)\n")


def test_the_fast_dataclass_becomes_the_standard_one():
    first = "from orchestrator.core.values import dataclass\n"
    source = first + "@dataclass(frozen=True, slots=True)  # why\nclass A:\n    b: int\n"
    made = transform(source)
    assert "orchestrator" not in made
    assert "@dataclass(unsafe_hash=True, init=False)  # why\n" in made


def test_what_annotations_name_is_imported():
    source = (
        "from dataclasses import dataclass\n"
        "if TYPE_CHECKING:\n    from random import Random\n    from decimal import Decimal\n"
        "@dataclass\nclass A:\n    rng: Random | None\n"
    )
    made = run(source)
    assert made.Random.__name__ == "Random"
    assert not hasattr(made, "Decimal")


def test_numbers_in_capitals_are_constants_to_the_compiler():
    source = (
        "from elsewhere import OTHER\n_SIZE = 2 * 8  # why\nLESS = -0.5\nTABLE = [1]\nTWICE = OTHER * 2\nsize = 3\n"
    )
    made = transform(source).splitlines()
    assert made[0] == HEAD.splitlines()[0] + "; from typing import Final"
    assert made[-5:] == [
        "_SIZE: Final = 2 * 8  # why",
        "LESS: Final = -0.5",
        "TABLE = [1]",
        "TWICE = OTHER * 2",
        "size = 3",
    ]


def test_members_of_enums_are_constants_to_the_compiler_where_functions_name_them():
    source = (
        "from elsewhere import Kind as Sort, Other\n"
        "class Own(StrEnum):\n    A = 'a'\n"
        "FIRST = Own.A\n"
        "def f(x=Own.A):\n"
        "    match x:\n"
        "        case Own.A:\n"
        "            return x is Own.A or x is Sort.B or x is Other.C or f'{Own.A}', Own.A\n"
    )
    made = transformation.transform(HEAD + source, "a.py", {("elsewhere", "Kind")}).splitlines()
    assert made[-6:] == [
        "def f(x=Own.A):",
        "    match x:",
        "        case Own.A:",
        "            return x is Own_MEMBER_A or x is Sort_MEMBER_B or x is Other.C or f'{Own.A}', Own_MEMBER_A",
        "Own_MEMBER_A: Final = Own.A",
        "Sort_MEMBER_B: Final = Sort.B",
    ]


HINTS = "if TYPE_CHECKING:\n    from orchestrator.core.fleet import Fleet\n"


@pytest.mark.parametrize(
    ("source", "line", "word"),
    [
        ("@dataclass(kw_only=True)\nclass A:\n    b: int\n", 4, "kw_only=True"),
        ("@dataclass(frozen=SURE)\nclass A:\n    b: int\n", 4, "frozen=SURE"),
        ("@dataclass(\n    frozen=True,\n)\nclass A:\n    b: int\n", 4, "on one line"),
        ("@dataclasses.dataclass(slots=True)\nclass A:\n    b: int\n", 4, "write @dataclass"),
        ("@dataclass\n@final\nclass A:\n    b: int\n", 4, "other decorators"),
        ("@dataclass\nclass A:\n    b: int = made()\n", 6, "b: of defaults only values"),
        ("@dataclass\nclass A:\n    b: int = field(init=False)\n", 6, "of field() only"),
        ("@dataclass\nclass A:\n    b: list[int] | None = field(default_factory=list)\n", 6, "to be None"),
        ("@dataclass\nclass A:\n    b: InitVar[int]\n", 6, "InitVar[int]"),
        ("@dataclass\nclass A:\n    b: 'int'\n", 6, "in quotes"),
        ("@dataclass\nclass A:\n    b: int\n    def __init__(self) -> None: ...\n", 5, "an __init__ of its own"),
        ("@dataclass\nclass A:\n    b: int\nC = 1\n", 7, "blank lines"),
        ("@dataclass\nclass A:\n    b: int\n\nC = 1\n", 8, "blank lines"),
        ("def f():\n    @dataclass\n    class A:\n        b: int\n", 6, "inside of something"),
        (HINTS + "@dataclass\nclass A:\n    b: Fleet\n", 5, "a Fleet, which is imported for type checkers only"),
        ("from dataclasses import dataclass as record\n", 4, "keep their names"),
    ],
)
def test_what_it_does_not_know_is_refused(source, line, word):
    with pytest.raises(transformation.Refused) as refused:
        transform("from dataclasses import dataclass, field\n" + source)
    assert str(refused.value).startswith(f"a.py:{line}: ")
    assert word in str(refused.value)
