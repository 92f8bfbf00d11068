"""``segue upgrade``: a running cluster becomes that of another configuration, replica by replica."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import config
from orchestrator.cli import attach, follow, rpc, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.plan import kept
from orchestrator.cli.plan_view import as_tables, changes
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder
from orchestrator.controller.course import outdated_pools, taken_over
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded, DoesNotFit
from orchestrator.core.planning.differences import Difference, differences
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.planning.moves import Moves
from orchestrator.core.planning.plan import ClusterPlan, plan
from orchestrator.core.rollout import PoolKey
from orchestrator.core.spec import Backend, ClusterSpec
from orchestrator.planning.asking import asked
from orchestrator.planning.live import inventory_of

STEP = "upgrade"
_RECONNECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Intent:
    """What is to be done. ``plan``: None where there is nothing to plan. ``full``: pools without room for a spare."""

    spec: ClusterSpec
    plan: ClusterPlan | None
    changed: tuple[Difference, ...]
    outdated: tuple[PoolKey, ...]
    full: tuple[PoolKey, ...]


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when all of it is as configured, 1 when it was rolled back, 2 where it can't be had, 3 where it does not
    fit, 130 when it was no longer watched."""
    spec = config.load(args.config)
    name = args.name or spec.name
    controller = attach.controller_on(args.address, name) if args.address else _controller(name)
    topology, running = rpc.topology(controller)
    console = terminal.err()
    with console.status("", spinner="dots") as status:
        intent = _intent(taken_over(running, as_started(running, spec)), running, topology, status.update)
    _show(intent, as_json=args.json)
    if intent.plan is not None and intent.plan.reasons:
        return Exit.DOES_NOT_FIT
    _require_room(intent, args.allow_unavailable)
    if args.dry_run or not (intent.changed or intent.outdated):
        return Exit.OK
    rpc.upgrade(controller, intent.spec, makes_room=args.allow_unavailable, full=intent.full)
    progress = Progress(terminal.err() if args.json else terminal.out())
    try:
        with progress.live():
            code = _followed(controller, progress)
    except KeyboardInterrupt:
        progress.say("segue: it goes on; `segue status` shows how far it is")
        return Exit.INTERRUPTED
    if code is Exit.OK and not args.address:
        drain = intent.spec.controller.drain_timeout
        RunFolder.of(name).update(config=str(Path(args.config).absolute()), drain_seconds=drain)
    return code


def as_started(running: ClusterSpec, spec: ClusterSpec) -> ClusterSpec:
    """With what the options of ``segue up`` made of the one that runs, which no file says."""
    if running.gateway.processes == 0:
        spec = replace(spec, gateway=replace(spec.gateway, processes=0))
    opened = attach.on_the_network(spec)
    return opened if _ways_in(opened) == _ways_in(running) else spec


def _ways_in(spec: ClusterSpec) -> tuple[object, ...]:
    return spec.bind, spec.gateway.http, spec.gateway.grpc, spec.controller.listen


def _controller(name: str) -> str:
    folder = RunFolder.of(name)
    record = folder.read() if folder.is_owned() else None
    if record is None or not record.controller:
        what = f"cluster {name} is not running on this machine"
        raise ClusterUnreachable(what, hint="start it with: segue up CONFIG; on a Ray elsewhere: --address RAY")
    return record.controller


def _intent(spec: ClusterSpec, running: ClusterSpec, topology: Topology, tell: Any) -> Intent:
    """Raises what ``segue plan`` raises."""
    mocks = all(pool.backend is Backend.MOCK for model in spec.models for pool in model.pools.values())
    if mocks and not spec.open:
        return Intent(spec, None, differences(running, spec), outdated_pools(running, spec), ())
    known, inventory = asked(spec, tell), inventory_of(topology, spec)
    there = kept(topology, running, known)
    found = plan(spec, known, inventory, there)
    if found.reasons:
        return Intent(spec, found, differences(running, found.spec), (), ())
    made = config.closed(found.spec)
    outdated, surge = outdated_pools(running, made), made.controller.rollout.surge
    full = [
        key
        for key in outdated
        if surge and key[0] in known and plan(_with_spares(made, key, surge), known, inventory, there).reasons
    ]
    return Intent(made, found, differences(running, made), outdated, tuple(full))


def _with_spares(spec: ClusterSpec, key: PoolKey, surge: int) -> ClusterSpec:
    models = [
        replace(
            model,
            pools={
                role: replace(pool, replicas=pool.replicas + surge) if (model.name, role) == key else pool
                for role, pool in model.pools.items()
            },
        )
        for model in spec.models
    ]
    return replace(spec, models=tuple(models))


def _require_room(intent: Intent, allow_unavailable: bool) -> None:
    """Raises DoesNotFit where a pool's only replica would have to go before another comes, and nobody allowed that."""
    for model, role in intent.full:
        replicas = next(pool.replicas for pool in intent.spec.model(model).pools.values() if pool.role is role)
        if replicas == 1 and not allow_unavailable and not intent.spec.controller.rollout.unavailable:
            what = f"{model} {role} has one replica, and there is no room for another while that one serves"
            raise DoesNotFit(what, hint="--allow-unavailable has it gone first; requests for it wait or fail meanwhile")


def _show(intent: Intent, *, as_json: bool) -> None:
    names = [f"{model} {role}" for model, role in intent.outdated]
    full = [f"{model} {role}" for model, role in intent.full]
    if as_json:
        fits = intent.plan is None or not intent.plan.reasons
        reasons = list(intent.plan.reasons) if intent.plan is not None else []
        changed = [asdict(each) for each in intent.changed]
        told = {"fits": fits, "reasons": reasons, "changes": changed, "replaced": names, "no_room": full}
        terminal.out().print(json.dumps(told, indent=2), soft_wrap=True)
        return
    console = terminal.out()
    if intent.plan is not None:
        console.print(as_tables(intent.plan, intent.changed))
    else:
        for line in changes(Moves(), intent.changed):
            console.print(line)
    if names:
        console.print(f"replaced one after the other: {', '.join(names)}", soft_wrap=True)
    for each in full:
        console.print(f"no room for a spare of {each}: a replica is missing instead", soft_wrap=True)


def _followed(controller: str, progress: Progress) -> Exit:
    """Until it has come to an end, however often the controller is away meanwhile."""
    while True:
        try:
            for status in rpc.watch(controller):
                follow.show(status, progress)
                code = _told(status.rollout, progress)
                if code is not None:
                    return code
        except (ClusterUnreachable, DeadlineExceeded):
            progress.running(STEP, "the controller does not answer")
        time.sleep(_RECONNECT_SECONDS)


def _told(rollout: Any, progress: Progress) -> Exit | None:
    """The exit code once it is over."""
    why = f": {rollout.detail}" if rollout.detail else ""
    if rollout.state == "done":
        progress.done(STEP, f"done{why}")
        return Exit.OK
    if rollout.state == "rolled back":
        progress.failed(STEP, f"rolled back{why}")
        return Exit.FAILED
    progress.running(STEP, f"{rollout.state}, {rollout.done} of {rollout.total} replicas{why}")
    return None
