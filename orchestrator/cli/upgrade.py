"""``segue upgrade``: a running cluster becomes that of another configuration, replica by replica."""

from __future__ import annotations

import argparse
import json
import operator
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import config
from orchestrator.cli import attach, follow, rpc, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.plan import kept
from orchestrator.cli.plan_view import as_tables, changes
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder
from orchestrator.controller.course import outdated_pools
from orchestrator.core.changeable import taken_over
from orchestrator.core.course import Phase
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded, DoesNotFit, NotKept
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
_SILENCE_SECONDS = 120.0  # one that Ray restarts is back in seconds, or in some tens where it breaks again and again


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
    progress = Progress(terminal.err() if args.json else terminal.out())
    try:
        rpc.upgrade(controller, intent.spec, makes_room=args.allow_unavailable, full=intent.full)
    except NotKept as error:
        progress.say(f"segue: {error}")
    find = (lambda: controller) if args.address else partial(_controller, name)
    try:
        with progress.live():
            code = _followed(find, intent.spec, progress)
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
    ways = _ways_in(running)
    alike = (spec, attach.on_the_network(spec))  # the one that differs in less, so that no more than that is refused
    return min(alike, key=lambda each: sum(map(operator.ne, _ways_in(each), ways)))


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


def _followed(find: Callable[[], str], spec: ClusterSpec, progress: Progress) -> Exit:
    """Until it has come to an end, however often the controller is away meanwhile.

    Raises ClusterUnreachable once ``find`` does, or where it stays away.
    """
    heard = time.monotonic()
    while True:
        controller = find()
        try:
            for status in rpc.watch(controller):
                heard = time.monotonic()
                follow.show(status, progress)
                if not _under_way(status.rollout, progress):
                    return _outcome(controller, spec, status.rollout, progress)
        except DeadlineExceeded:
            continue
        except ClusterUnreachable as error:
            if time.monotonic() - heard >= _SILENCE_SECONDS:
                what = f"its controller has not answered for {_SILENCE_SECONDS:g} s"
                hint = "the upgrade goes on once there is one; segue status shows how far it is"
                raise ClusterUnreachable(what, where=controller, hint=hint) from error
            progress.running(STEP, "the controller does not answer")
        time.sleep(_RECONNECT_SECONDS)


def _under_way(rollout: Any, progress: Progress) -> bool:
    if rollout.state not in (Phase.ROLLING, Phase.ROLLING_BACK):
        return False
    why = f": {rollout.detail}" if rollout.detail else ""
    progress.running(STEP, f"{rollout.state}, {rollout.done} of {rollout.total} replicas{why}")
    return True


def _outcome(controller: str, spec: ClusterSpec, rollout: Any, progress: Progress) -> Exit:
    """Told by what runs then: a controller that took over after the end knows of no upgrade."""
    why = f": {rollout.detail}" if rollout.detail else ""
    if rollout.state == Phase.DONE or config.digest(rpc.topology(controller)[1]) == config.digest(spec):
        progress.done(STEP, f"{rollout.state or Phase.DONE}{why}")
        return Exit.OK
    progress.failed(STEP, f"{rollout.state or Phase.ROLLED_BACK}{why}")
    return Exit.FAILED
