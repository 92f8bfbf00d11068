"""``segue up --record FILE``: where the recordings of a cluster's gateways go."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from orchestrator.core.errors import ConfigError
from orchestrator.core.slots import Kind, slots_of
from orchestrator.core.spec import ClusterSpec

# What gateways, and those that take their places, may add to the file's name.
_OURS = re.compile(r"(\.gateway-\d+)?(\.epoch-\d+)?")


def into(spec: ClusterSpec, path: Path) -> ClusterSpec:
    """The same cluster, recorded. ``path`` is absolute.

    Raises:
        ConfigError: a recording is there already, or the folder can't be written to.
    """
    folder = path.parent
    if not os.access(folder, os.W_OK):
        raise ConfigError(
            "no folder that can be written to", where=str(folder), hint="--record FILE makes a file in it"
        )
    for name in sorted(os.listdir(folder)):
        if name.startswith(path.name) and _OURS.fullmatch(name.removeprefix(path.name)):
            raise ConfigError("exists", where=str(folder / name), hint="recordings are never overwritten: name another")
    return replace(spec, gateway=replace(spec.gateway, record=str(path)))


def files(spec: ClusterSpec) -> list[str]:
    """One for each gateway process; none where nothing is recorded."""
    gateways = [slot.slot_id for slot in slots_of(spec) if slot.kind is Kind.GATEWAY]
    return [file for gateway_id in gateways if (file := spec.gateway.recording(gateway_id))]
