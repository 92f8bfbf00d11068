"""``segue plan``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Container

from orchestrator import config
from orchestrator.cli import rpc, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.ground import RayThatIsThere
from orchestrator.cli.plan_view import as_tables
from orchestrator.cli.run_folder import RunFolder
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded
from orchestrator.core.planning.differences import differences
from orchestrator.core.planning.hosts import Topology, cpu_parts_of, gangs_of, kept_of, nodes_of, reachable
from orchestrator.core.planning.places import Placed
from orchestrator.core.planning.plan import plan
from orchestrator.core.spec import ClusterSpec
from orchestrator.planning.as_json import as_json
from orchestrator.planning.asking import asked, devices
from orchestrator.planning.live import inventory_of


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 where all of it fits, 3 where it doesn't; 2 where the configuration or the inventory is wrong."""
    spec = config.load(args.config)
    console = terminal.err()
    with console.status("", spinner="dots") as status:
        topology, running = _below(spec, args, status.update)
        inventory = inventory_of(topology, spec) if topology else devices(spec, args.inventory)
        known = asked(spec, status.update)
        found = plan(spec, known, inventory, kept(topology, running, known))
    changed = differences(running, found.spec) if running else None
    if args.json:
        terminal.out().print(json.dumps(as_json(found, changed), indent=2), soft_wrap=True)
    else:
        terminal.out().print(as_tables(found, changed))
    return Exit.OK if found.fits else Exit.DOES_NOT_FIT


def kept(topology: Topology | None, running: ClusterSpec | None, planned: Container[str]) -> tuple[Placed, ...]:
    """Where the replicas that run are, of the models that are planned."""
    if topology is None or running is None:
        return ()
    topology = reachable(topology, running)
    nodes = nodes_of(topology, cpu_parts_of(running, topology))
    return kept_of(topology, [gang for gang in gangs_of(running, nodes) if gang.model in planned], nodes)


def _below(
    spec: ClusterSpec, args: argparse.Namespace, progress: Callable[[str], object]
) -> tuple[Topology | None, ClusterSpec | None]:
    """The hosts of a live cluster, if it is to go on one, and what runs there under its name, if anything does."""
    if args.address:
        progress(f"joining Ray at {args.address}")
        ground = RayThatIsThere(args.address)
        ground.start(None)
        try:
            controller = ground.controller(spec.name)
            return rpc.topology(controller) if controller else (ground.topology(spec.name), None)
        finally:
            ground.stop()
    folder = RunFolder.of(spec.name)
    record = folder.read() if folder.is_owned() else None
    if args.inventory or not (record and record.controller):
        return None, None
    progress(f"asking cluster {spec.name}")
    try:
        return rpc.topology(record.controller)
    except (ClusterUnreachable, DeadlineExceeded) as error:
        what = f"cluster {spec.name} is up (process {record.pid}), but its controller does not answer"
        hint = "segue logs shows what it is doing; with --inventory FILE it is planned without it"
        raise ClusterUnreachable(what, where=record.controller, hint=hint) from error
