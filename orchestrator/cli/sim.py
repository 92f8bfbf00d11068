"""``segue sim``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orchestrator import config
from orchestrator.cli import terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.sim_tables import as_tables
from orchestrator.core.errors import ConfigError
from orchestrator.core.policies import build
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.sim import faults, traces
from orchestrator.sim.measure import Slo
from orchestrator.sim.plot import page
from orchestrator.sim.report import as_json
from orchestrator.sim.run import Options, Result, routed, settings_of, shared_out, simulate


def run(args: argparse.Namespace) -> Exit:
    """Simulates and prints what came of it; exit 2 where the configuration, the trace or an option is wrong."""
    spec = config.closed(config.load(args.config), args.config)
    model = _routed(_model(spec, args.model), args.policy)
    replicas = _replicas(model, args.replicas)
    limits = traces.Limits(args.speed, args.rate, args.requests, args.duration)
    size = next(iter(settings_of(model).values())).facts.block_size
    offers = traces.offers(args.trace, size, limits, args.seed, sum(replicas.values()))
    options = Options(
        replicas=replicas,
        seed=args.seed,
        gateways=args.gateways,
        faults=faults.parse(args.faults),
        delay=args.delay_ms / 1e3,
        jitter=args.jitter_ms / 1e3,
        spread=args.spread,
        noise=args.noise,
        deadline=args.deadline,
        slo=Slo(args.slo_ttft_ms / 1e3, args.slo_itl_ms / 1e3),
    )
    result = simulate(spec, model, offers, options)
    _show(result, args, model)
    return Exit.OK


def _show(result: Result, args: argparse.Namespace, model: ModelSpec) -> None:
    answer = as_json(result)
    if args.plot:
        _write(Path(args.plot), page(result, answer, f"{model.name}, {args.trace}, {model.routing.policy}"))
    if args.json:
        terminal.out().print(json.dumps(answer, indent=2), soft_wrap=True)
        return
    terminal.out().print(as_tables(answer))
    if args.plot:
        terminal.out().print(f"plot: {args.plot}", soft_wrap=True)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the plot can't be written: {error.strerror}", where=str(file)) from error


def _model(spec: ClusterSpec, name: str | None) -> ModelSpec:
    names = [model.name for model in spec.models]
    if name is None and len(names) == 1:
        return spec.models[0]
    if name not in names:
        what = f"there is no model {name!r}" if name else f"{spec.name} has {len(names)} models"
        raise ConfigError(what, where="--model", hint=f"one of {', '.join(names)}")
    return spec.model(name)


def _routed(model: ModelSpec, policy: str | None) -> ModelSpec:
    if policy is not None:
        try:
            build(policy, {})
        except ConfigError as error:
            raise ConfigError(error.what, where="--policy") from None
    return routed(model, policy)


def _replicas(model: ModelSpec, text: str | None) -> dict[Role, int]:
    """'8', shared out over the pools, or 'prefill=2,decode=6'; None for the configuration's own."""
    if text is None:
        return {role: pool.replicas for role, pool in model.pools.items()}
    if text.isdecimal():
        return shared_out(model, int(text))
    found = {}
    for part in text.split(","):
        role, _, count = part.partition("=")
        if role not in set(model.pools) or not count.isdecimal() or not int(count):
            pools = ", ".join(model.pools)
            raise ConfigError(f"found {part!r}", where="--replicas", hint=f"a number, or ROLE=NUMBER of: {pools}")
        found[Role(role)] = int(count)
    return {role: found.get(role, pool.replicas) for role, pool in model.pools.items()}
