"""A file that says which nodes there are -> nodes, and the catalogue with what the file says of devices.

::

    devices:                      # optional: prices of one's own, devices that the catalogue doesn't have
      H100-80GB: {usd_per_hour: 2.50}
    nodes:
      - {name: n0, gpu: H100-80GB, count: 8, labels: {zone: a, rack: r1}}
      - {name: "b[00-31]", gpu: L4, labels: {zone: b}}      # 32 nodes that are alike: b00 to b31
      - {name: c0, cpu: this-cpu}                           # measured, if a node has it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.cursor import Cursor
from orchestrator.config.document import Document
from orchestrator.config.document import read as read_yaml
from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Catalogue, DeviceKind, plain
from orchestrator.core.planning.places import Node, domains
from orchestrator.core.spec import Device
from orchestrator.planning import catalogue
from orchestrator.planning.this_cpu import NAME as THIS_CPU

# Far above what there is: a slip of the finger is told instead of obeyed.
MOST_NODES = 100_000
MOST_DEVICES = 1024
NAME_FORM = "letters, digits and . _ -, with at most one range as in n[0-31] or n[00-31,40]"
_NAME = re.compile(r"([A-Za-z0-9._-]*)(?:\[([0-9,-]+)\]([A-Za-z0-9._-]*))?")
_SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Inventory:
    """Nodes, whose devices the catalogue knows."""

    nodes: tuple[Node, ...]
    catalogue: Catalogue


def load(path: str | Path, measure: Callable[[], DeviceKind] = catalogue.this_cpu) -> Inventory:
    """Read an inventory file; ``measure`` is called if a node has ``cpu: this-cpu``.

    Raises:
        ConfigError: one line with file, line, key path, what was found and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the file can't be read: {reason}", where=str(path), hint="name a YAML file") from error
    return parse(read_yaml(text, str(path)), measure)


def parse(document: Document, measure: Callable[[], DeviceKind] = catalogue.this_cpu) -> Inventory:
    """The nodes and devices of a document; ConfigError at the first place that is wrong."""
    top = Cursor(document)
    sections = top.fields("devices", "nodes")
    if "nodes" not in sections:
        raise top.error("found no nodes, allowed: nodes: [{name: n0, gpu: H100-80GB, count: 8}]")
    known = catalogue.builtin()
    if _names_this_cpu(sections):
        known = known.extended((measure(),))
    if "devices" in sections:
        known = catalogue.described(sections["devices"], known)
    nodes: dict[str, Node] = {}
    for entry in sections["nodes"].items():
        for node in _nodes(entry, known):
            if node.name in nodes:
                raise entry.child("name").error(f"found {node.name} a second time, allowed: a name that no other has")
            nodes[node.name] = node
            if len(nodes) > MOST_NODES:
                raise entry.error(f"found more than {MOST_NODES} nodes, allowed: up to {MOST_NODES}")
    if not nodes:
        raise sections["nodes"].wrong("at least one node")
    return Inventory(tuple(nodes.values()), known)


def _names_this_cpu(sections: dict[str, Cursor]) -> bool:
    words = [entry.value.get("cpu") for entry in sections["nodes"].items() if isinstance(entry.value, dict)]
    words += sections["devices"].entries() if "devices" in sections else []
    return any(isinstance(word, str) and plain(word) in (plain(THIS_CPU), "cpu") for word in words)


def _nodes(cursor: Cursor, known: Catalogue) -> Iterator[Node]:
    """The nodes of one entry: several, where its name has a range."""
    fields = cursor.fields("name", "gpu", "cpu", "count", "labels")
    if "name" not in fields:
        raise cursor.error(f"found no name, allowed: {NAME_FORM}")
    device = _device(cursor, fields, known)
    count = fields["count"].integer(1, MOST_DEVICES) if "count" in fields else 1
    labels = _labels(fields["labels"]) if "labels" in fields else {}
    for place, name in enumerate(_names(fields["name"])):
        node = Node(name, device.name, count, labels)
        if place == 0:
            _check_domains(fields.get("labels", cursor), node)
        yield node


def _device(cursor: Cursor, fields: dict[str, Cursor], known: Catalogue) -> DeviceKind:
    given = [key for key in ("gpu", "cpu") if key in fields]
    if len(given) != 1:
        raise cursor.error(f"found {' and '.join(given) or 'neither gpu nor cpu'}, allowed: one of gpu and cpu")
    key = given[0]
    word = fields[key]
    kind = known.find(word.text("a device's name"), word.place())
    if kind.kind is not Device(key):
        raise word.error(f"found {kind.name}, which is a {kind.kind}, allowed: a {key}", f"write {kind.kind}: instead")
    return kind


def _labels(cursor: Cursor) -> dict[str, str]:
    labels = {}
    for name, entry in cursor.entries().items():
        whole = isinstance(entry.value, int) and not isinstance(entry.value, bool)  # rack: 7
        labels[name] = str(entry.value) if whole else entry.text("text or a whole number")
    return labels


def _check_domains(cursor: Cursor, node: Node) -> None:
    try:
        domains(node)
    except ConfigError as error:
        raise cursor.error(error.what, error.hint) from error


def _names(cursor: Cursor) -> Iterator[str]:
    """``n[08-10]`` is n08, n09 and n10; leading zeros of the first number set the width."""
    matched = _NAME.fullmatch(cursor.text(NAME_FORM))
    if not matched:
        raise cursor.wrong(NAME_FORM)
    before, spans, after = matched.groups()
    if spans is None:
        yield before
        return
    for span in spans.split(","):
        numbers = _SPAN.fullmatch(span)
        if not numbers:
            raise cursor.wrong(NAME_FORM)
        first, last = numbers[1], numbers[2] or numbers[1]
        if int(first) > int(last):
            raise cursor.wrong(NAME_FORM, f"{span} counts down")
        width = len(first) if first.startswith("0") else 0
        for number in range(int(first), int(last) + 1):
            yield f"{before}{number:0{width}d}{after}"
