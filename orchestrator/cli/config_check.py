"""``segue config check``."""

from __future__ import annotations

import argparse
import json

from orchestrator import config
from orchestrator.cli import terminal
from orchestrator.cli.exits import Exit
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import AUTO, ClusterSpec, ModelSpec


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 with a summary, or 2 with one line that says what is wrong."""
    if not args.json:
        terminal.out().print(f"{args.file}: ok, {summary(config.load(args.file))}", soft_wrap=True)
        return Exit.OK
    try:
        answer = {"valid": True, "spec": json.loads(config.dumps(config.load(args.file)))}
    except ConfigError as error:
        answer = {"valid": False, "error": {"what": error.what, "where": error.where, "hint": error.hint}}
    terminal.out().print(json.dumps(answer, indent=2), soft_wrap=True)
    return Exit.OK if answer["valid"] else Exit.USAGE


def summary(spec: ClusterSpec) -> str:
    """'cluster local: smollm2-135m (1 prefill, 1 decode)'."""
    return f"cluster {spec.name}: " + "; ".join(_model(model) for model in spec.models)


def _model(model: ModelSpec) -> str:
    counts = {pool.role: "auto" if pool.replicas == AUTO else pool.replicas for pool in model.pools.values()}
    return f"{model.name} ({', '.join(f'{count} {role}' for role, count in counts.items())})"
