"""``segue up``: one process owns the cluster from the first step until nothing is left of it."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator import config, models
from orchestrator.cli import attach, detach, follow, foreground, guard, ports, record, rpc, terminal, welcome
from orchestrator.cli.attach import Stay
from orchestrator.cli.config_check import summary
from orchestrator.cli.down import drain_seconds
from orchestrator.cli.exits import Exit, of_error
from orchestrator.cli.footprint import Footprint, Swept, adopt_orphans
from orchestrator.cli.ground import Ground, LocalRay, RayThatIsThere
from orchestrator.cli.planned import planned
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder, RunRecord
from orchestrator.cli.signals import Interrupted, Interrupts
from orchestrator.core.errors import ClusterUnreachable, ConfigError, DoesNotFit, NameTaken, SegueError
from orchestrator.core.spec import ClusterSpec

_GRACE_SECONDS = 5.0


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when stopped after it was ready, 1 when it failed, 2 for a bad configuration, 3 where it does not fit, 130
    when stopped before it was ready."""
    spec = config.load(args.config)
    path = Path(args.config).absolute()
    if args.record:
        spec = record.into(spec, Path(args.record).absolute())
    if args.no_gateways:
        spec = replace(spec, gateway=replace(spec.gateway, processes=0))
    stay = attach.stay_of(args)
    if args.bind:
        spec = attach.on_the_network(spec)
    if stay.apart:
        there = RayThatIsThere(args.address or attach.HERE, args.kubernetes or "")
        return Owner(spec, path, there, Progress(terminal.out()), background=False, stay=stay).run()
    if args.detach:
        return detach.run(spec, path, args.address)
    if not (args.background or args.in_session):
        return foreground.run(spec, path, args.address)
    if args.in_session:
        foreground.end_with_parent()
    ground = RayThatIsThere(args.address) if args.address else LocalRay()
    return Owner(spec, path, ground, Progress(terminal.out()), background=args.background).run()


class Owner:
    """Brings the cluster up, keeps it, and takes it down again."""

    def __init__(
        self,
        spec: ClusterSpec,
        config_path: Path,
        ground: Ground,
        progress: Progress,
        *,
        background: bool,
        stay: Stay | None = None,
    ) -> None:
        self._spec = spec
        self._config_path = config_path
        self._ground = ground
        self._progress = progress
        self._background = background
        self._stay = stay or Stay()
        self._stays = False
        self._folder = RunFolder.of(spec.name)
        self._footprint = Footprint(self._folder.footprint)
        self._interrupts = Interrupts()
        self._ray_folder: Path | None = None
        self._joined = False
        self._controller_asked = False
        self._controller = self._ray_address = ""

    def run(self) -> Exit:
        with self._folder.claim():
            self._clean_up_after_a_dead_owner()
            if not self._stay.keep:
                ports.require_free(self._spec)
            self._interrupts.install()
            if not self._stay.apart:
                adopt_orphans()
            self._write_record()
            ray_log = (self._folder.logs / "ray.log").open("w", buffering=1)
            # In this process Ray prints what it thinks of actors that die; the progress says it in fewer words.
            with ray_log, redirect_stdout(ray_log), self._guarded() as self._footprint.guard:
                return self._life()

    def _guarded(self) -> AbstractContextManager[int]:
        return guard.guarded(self._folder, apart=self._stay.apart)

    def _life(self) -> Exit:
        code = Exit.INTERRUPTED
        try:
            with self._interrupts.raising():
                self._start()
                code = Exit.OK  # from here on an interrupt is how it is meant to end
                if not self._stay.leave:
                    self._follow()
        except Interrupted:
            self._progress.say("")  # the terminal has just written ^C
        except SegueError as error:
            self._progress.say(f"segue: {error}")
            code = of_error(error) if isinstance(error, ConfigError | DoesNotFit) else Exit.FAILED
        finally:
            clean = self._end()
        return code if clean else Exit.FAILED

    def _start(self) -> None:
        progress = self._progress
        progress.say(f"segue: {summary(self._spec)}")
        for file in record.files(self._spec):
            progress.say(f"segue: recording into {file}")
        with progress.live():
            self._prepare_models()
            self._start_ray()
            spec = self._found() or self._started()
            self._folder.update(controller=self._controller)
            gateway = follow.until_ready(self._controller, spec, self._folder.logs, progress, self._footprint.sample)
        if gateway is None:
            welcome.bare(progress, spec, self._folder, self._controller, self._way_out())
        else:
            self._folder.update(http=gateway.http, grpc=gateway.grpc)
            welcome.show(progress, spec, self._folder, gateway, self._way_out())
        self._folder.update(phase="ready")
        self._stays = self._stay.keep

    def _found(self) -> ClusterSpec | None:
        """The cluster that an earlier command left to go on, if it is what is asked for. Raises NameTaken."""
        address = self._ground.controller(self._spec.name) if self._stay.keep else ""
        if not address:
            return None
        spec = self._plan()
        if rpc.topology(address)[1] != spec:
            what = f"a cluster named {spec.name!r} runs on this Ray, with another configuration"
            raise NameTaken(what, where="cluster.name", hint="'segue down --address RAY --name NAME' stops it")
        self._stays, self._controller = True, address
        self._progress.done("controller", f"{address}, found running")
        return spec

    def _started(self) -> ClusterSpec:
        self._ground.require_name(self._spec.name)
        if self._stay.keep:
            ports.require_free(self._spec)
        self._await_nodes()
        spec = self._plan()
        self._progress.running("controller", "starting")
        self._folder.update(phase="starting")
        self._start_controller(spec)
        self._progress.done("controller", self._controller)
        return spec

    def _await_nodes(self) -> None:
        if self._stay.nodes:
            topology = partial(self._ground.topology, self._spec.name)
            tell = partial(self._progress.running, "nodes")
            attach.await_nodes(self._stay.nodes, topology, tell, self._spec.controller.start_timeout)
            self._progress.done("nodes", f"{self._stay.nodes} have joined")

    def _follow(self) -> None:
        is_gone = partial(self._ground.is_gone, self._spec.name)
        follow.changes(self._controller, self._progress, self._footprint.sample, is_gone)
        self._progress.say("segue: somebody else took the cluster down")

    def _way_out(self) -> str:
        """What stops the cluster."""
        down = f"segue down --name {self._spec.name}"
        if self._stay.apart:
            return f"{down} --address {self._ray_address}"
        return down if self._background else "Ctrl-C"

    def _start_controller(self, spec: ClusterSpec) -> None:
        self._controller_asked = True
        try:
            self._controller = self._ground.start_controller(spec, str(self._folder.logs))
        except NameTaken:
            self._controller_asked = False  # the one that is there is somebody else's
            raise

    def _prepare_models(self) -> None:
        for model in self._spec.models:
            name = f"model {model.name}"
            self._progress.running(name, f"preparing {model.source}")
            place = models.prepare(model.source, partial(self._progress.running, name))
            self._progress.done(name, place)

    def _start_ray(self) -> None:
        self._progress.running("ray", "starting")
        self._ray_folder = self._ground.folder(self._folder.path)
        self._folder.update(ray_folder=str(self._ray_folder or ""))
        address = self._ground.start(self._ray_folder)
        self._joined = True
        self._interrupts.install()  # Ray has put in a handler of its own
        self._footprint.sample()
        self._ray_address = address
        self._folder.update(ray_address=address)
        self._progress.done("ray", address)

    def _plan(self) -> ClusterSpec:
        """Once it is known what there is: nothing is started that can't run on it."""
        topology = self._ground.topology(self._spec.name)
        return planned(self._spec, topology, self._progress, str(self._config_path))

    def _end(self) -> bool:
        """Takes down what is up, whatever state it is in; returns whether all went as it should."""
        if self._stays:
            return self._leave()
        record = self._folder.read()  # `segue upgrade` may have written another time into it
        seconds = record.drain_seconds if record else self._spec.controller.drain_timeout
        if self._stay.apart and self._controller:  # there it is upgraded from anywhere
            seconds = drain_seconds(lambda _: self._controller, self._spec.name, self._progress, seconds)
        self._folder.update(phase="stopping", ends_by=time.time() + seconds)
        self._footprint.sample()
        drained = self._drain(seconds) if self._controller_asked else True
        self._progress.running("processes", "ending")
        if self._joined:
            self._ground.stop()
        swept = self._footprint.sweep(_GRACE_SECONDS)
        if self._ray_folder:
            shutil.rmtree(self._ray_folder, ignore_errors=True)
        self._folder.forget()
        return self._report(swept) and drained

    def _leave(self) -> bool:
        """What is up stays up."""
        self._ground.stop()
        self._folder.forget()
        self._progress.say(f"segue: cluster {self._spec.name} goes on; {self._way_out()} stops it")
        return True

    def _drain(self, drain_seconds: float) -> bool:
        hint = "" if self._background else " (Ctrl-C again to hurry)"
        self._progress.running("drain", f"finishing running requests{hint}")
        for seconds in (drain_seconds, 0.0):
            try:
                with self._interrupts.raising():
                    self._ground.stop_controller(self._spec.name, seconds)
            except Interrupted:
                self._progress.running("drain", "hurrying")
                continue
            except ClusterUnreachable:  # it was not there yet
                pass
            except SegueError as error:
                self._progress.failed("drain", str(error))
                return False
            self._progress.done("drain", "workers and gateways ended")
            return True
        self._progress.failed("drain", "cut short")
        return True

    def _report(self, swept: Swept) -> bool:
        for process in swept.processes:
            self._progress.say(f"segue: had to end process {process}")
        for file in swept.files:
            self._progress.say(f"segue: removed {file}, which its process left behind")
        taken = [f"{key} {at}" for key, at in ports.listeners(self._spec).items() if not ports.is_free(at)]
        if taken:
            self._progress.failed("processes", f"still taken: {', '.join(taken)}")
            return False
        self._progress.done("processes", "none left, ports free")
        return True

    def _clean_up_after_a_dead_owner(self) -> None:
        record = self._folder.read()
        if record:
            self._progress.say(f"segue: process {record.pid} owned this cluster and died; cleaning up after it")
            self._report(guard.clean(self._folder, grace=0.0))
        if self._stay.keep:
            return  # logs there may be of a cluster that goes on
        previous = self._folder.path / "logs.previous"
        shutil.rmtree(previous, ignore_errors=True)
        self._folder.logs.rename(previous)
        self._folder.logs.mkdir()

    def _write_record(self) -> None:
        drain = self._spec.controller.drain_timeout
        self._folder.write(
            RunRecord(
                self._spec.name,
                os.getpid(),
                str(self._config_path),
                time.time(),
                drain_seconds=drain,
                attached=self._stay.attached,
            )
        )
