"""A cluster's status for machines (JSON) and for people (a table)."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_BAR_CELLS = 10
_STATE_STYLES = {
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "pending": "dim",
    "failed": "bold red",
    "dead": "bold red",
}

NOT_RUNNING: dict[str, Any] = {
    "ready": False,
    "models": [],
    "gateways": [],
    "controller": {"pid": 0, "epoch": 0, "address": "", "term": 0, "away": True},
    "rollout": None,
}


def as_json(status: Any, *, away: bool) -> dict[str, Any]:
    """The documented shape; keys may be added to it, never taken away. ``away``: the controller does not answer."""
    return {
        "ready": status.ready,
        "name": status.name,
        "models": [
            {
                "name": model.name,
                "source": model.source,
                "pools": [
                    {"role": pool.role, "replicas": pool.replicas, "workers": [_worker(one) for one in pool.workers]}
                    for pool in model.pools
                ],
            }
            for model in status.models
        ],
        "gateways": [
            {
                "id": one.id,
                "http": one.http,
                "grpc": one.grpc,
                "pid": one.pid,
                "state": one.state,
                "stage": one.stage,
                "detail": one.detail,
                "outside": one.outside,
            }
            for one in status.gateways
        ],
        "controller": {
            "pid": status.controller.pid,
            "epoch": status.controller.epoch,
            "address": status.controller.address,
            "term": status.controller.term,
            "away": away,
        },
        "rollout": _rollout_json(status.rollout) if status.rollout.state else None,
    }


def _rollout_json(rollout: Any) -> dict[str, Any]:
    return {"state": rollout.state, "done": rollout.done, "total": rollout.total, "detail": rollout.detail}


def _worker(worker: Any) -> dict[str, Any]:
    return {
        "id": worker.id,
        "node": worker.node,
        "state": worker.state,
        "stage": worker.stage,
        "detail": worker.detail,
        "pids": {"actor": worker.actor_pid, "engine": worker.engine_pid},
        "running": worker.running,
        "waiting": worker.waiting,
        "kv_usage": _kv_usage(worker),
        "kv_blocks_used": worker.kv_blocks_used,
        "kv_blocks_total": worker.kv_blocks_total,
        "restarts": worker.restarts,
        "epoch": worker.epoch,
    }


def _kv_usage(worker: Any) -> float:
    return float(worker.kv_blocks_used / worker.kv_blocks_total) if worker.kv_blocks_total else 0.0


def as_table(status: Any, *, away: bool) -> RenderableType:
    """Workers with their load, and one line each for gateways and controller."""
    upgrade = [_upgrade(status.rollout)] if status.rollout.state else []
    last = (*_gateways(status), _controller(status.controller, away), *upgrade)
    return Group(_headline(status), _workers(status), *last)


def _upgrade(rollout: Any) -> Text:
    style = {"done": "dim", "rolled back": "bold red", "rolling back": "bold yellow"}.get(rollout.state, "cyan")
    count = f", {rollout.done} of {rollout.total} replicas" if rollout.state.startswith("rolling") else ""
    why = f": {rollout.detail}" if rollout.detail else ""
    return Text.assemble(("upgrade  ", "dim"), (rollout.state + count, style), why)


def _headline(status: Any) -> Text:
    state = ("ready", "bold green") if status.ready else ("not ready", "bold yellow")
    return Text.assemble((status.name, "bold"), "  ", ("● ", state[1]), state)


def _workers(status: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("MODEL", "POOL", "WORKER", "STATE"):
        table.add_column(title, no_wrap=True)
    for title in ("RUNNING", "WAITING"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("KV BLOCKS", no_wrap=True)
    table.add_column("RESTARTS", justify="right", no_wrap=True)
    table.add_column("PID", justify="right", no_wrap=True)
    table.add_column("NODE", no_wrap=True)
    for model in status.models:
        name = model.name
        for pool in model.pools:
            ready = sum(worker.state == "ready" for worker in pool.workers)
            role = f"{pool.role} {ready}/{pool.replicas}"
            for worker in pool.workers:
                table.add_row(name, role, *_cells(worker))
                name = role = ""
            if not pool.workers:
                table.add_row(name, role, Text("none", style="dim"))
                name = ""
    return table


def _cells(worker: Any) -> tuple[RenderableType, ...]:
    return (
        worker.id,
        _state(worker),
        str(worker.running),
        str(worker.waiting),
        _kv_bar(worker),
        Text(str(worker.restarts), style="yellow" if worker.restarts else "dim"),
        Text(str(worker.engine_pid or worker.actor_pid or "-"), style="dim"),
        Text(worker.node or "-", style="dim"),
    )


def _state(actor: Any) -> Text:
    remark = actor.detail or (actor.stage if actor.state != "ready" else "")
    text = Text(actor.state, style=_STATE_STYLES.get(actor.state, ""))
    if remark:
        text.append(f" {remark.splitlines()[0][:60]}", style="dim")
    return text


def _kv_bar(worker: Any) -> Text:
    if not worker.kv_blocks_total:
        return Text("-", style="dim")
    usage = _kv_usage(worker)
    full = min(_BAR_CELLS, round(usage * _BAR_CELLS) or (1 if usage else 0))
    style = "red" if usage > 0.9 else "yellow" if usage > 0.7 else "green"
    return Text.assemble(
        ("█" * full, style),
        ("░" * (_BAR_CELLS - full), "dim"),
        f" {worker.kv_blocks_used}/{worker.kv_blocks_total}",
    )


def _gateways(status: Any) -> list[Text]:
    return [
        Text.assemble(
            (f"gateway {one.id}  ", "dim"), _state(one), (f"{_addresses(one)}  pid {one.pid}{_whose(one)}", "dim")
        )
        for one in status.gateways
    ]


def _addresses(gateway: Any) -> str:
    return f"  http://{gateway.http}  grpc {gateway.grpc}" if gateway.http else ""


def _whose(gateway: Any) -> str:
    return "  outside of Ray" if gateway.outside else ""


def _controller(control: Any, away: bool) -> Text:
    last = f"pid {control.pid}  epoch {control.epoch}  {control.address}"
    if not away:
        return Text(f"controller  {last}", style="dim")
    known = f"; last known: {last}" if control.pid else ""
    return Text.assemble(("controller away", "bold yellow"), (f"  gateways go on without it{known}", "dim"))
