"""What a brain says of the cluster and not of a request: a line in the log, and a gauge."""

from __future__ import annotations

from orchestrator.core.messages import Alert, Sick
from orchestrator.telemetry import logs
from orchestrator.telemetry.brain_metrics import BrainMetrics
from orchestrator.telemetry.redact import Words

log = logs.events("gateway.driver")


def tell(command: Alert | Sick, metrics: BrainMetrics) -> None:
    """Says it once."""
    if isinstance(command, Alert):
        say = log.info if command.over else log.warning
        say("alert over" if command.over else "alert", kind=command.kind, model=command.model, what=Words(command.text))
        metrics.alert(command.kind, command.model, not command.over)
        return
    say, what = (log.info, "worker back in") if command.over else (log.warning, "worker taken out")
    say(what, worker=command.worker_id, model=command.model, pool=command.role, why=Words(command.why))
    metrics.worker_out(command.model, command.role.value, command.worker_id, not command.over)
