"""A request's story for people: when, what, where, and why."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.terminal import byte_count, without_control
from orchestrator.core.decision import Choice, Decision
from orchestrator.core.types import RequestReport
from orchestrator.record.story import Moment, RequestStory, What

_BAD = {What.PREFILL_FAILED, What.DECODE_FAILED, What.REFUSED, What.WORKER_LOST, What.CANCELLED}
_QUEUED_SECONDS = 0.001  # a shorter wait is the gateway's own work


def as_text(story: RequestStory) -> RenderableType:
    """A headline, a table with a row a moment, and what came of it."""
    return Group(*_headline(story), Text(""), _timeline(story), Text(""), *_outcome(story))


def clock(seconds: float) -> str:
    """Seconds since the Unix epoch as '2026-03-01 12:00:00.123 UTC'."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def span(seconds: float) -> str:
    """0.0123 -> '12.3 ms', 4.2 -> '4.20 s'."""
    return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def _headline(story: RequestStory) -> Iterator[Text]:
    other = f"  (x-request-id {story.client_id})" if story.client_id and story.client_id != story.request_id else ""
    yield Text.assemble(("request ", "dim"), (without_control(story.request_id), "bold"), without_control(other))
    place = [f"model {story.model}", f"gateway {story.gateway}" if story.gateway else "", f"at {clock(story.arrived)}"]
    yield _joined(place)
    yield _joined(
        [
            f"prompt {story.prompt_tokens} tokens" + (f", {story.blocks} whole blocks" if story.blocks else ""),
            f"at most {story.output_limit} tokens of output" if story.output_limit else "",
            f"tenant {story.tenant}" if story.tenant else "",
            f"priority {story.priority}" if story.priority else "",
            f"adapter {story.adapter}" if story.adapter else "",
            "has to be prefilled where it decodes" if story.local_only else "",
            "" if story.deadline_seconds is None else f"deadline after {span(story.deadline_seconds)}",
        ]
    )


def _timeline(story: RequestStory) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("AFTER", justify="right", no_wrap=True)
    for title in ("WHAT", "WORKER"):
        table.add_column(title, no_wrap=True)
    table.add_column("WHY", overflow="fold")
    sent: Moment | None = None  # what computes the prompt
    for number, moment in enumerate(story.moments):
        if story.left_out and number == len(story.moments) // 2:
            table.add_row("", Text("...", style="dim"), "", Text(f"{story.left_out} moments left out", style="dim"))
        why = [*_queued(story, moment, sent), *_why(story, moment, sent)]
        style = "red" if moment.what in _BAD else ""
        words = without_control("\n".join(why))
        table.add_row(span(moment.seconds), Text(moment.what, style), without_control(moment.worker), Text(words))
        if moment.what is What.PREFILL_SENT or (moment.what is What.DECODE_SENT and _computes(moment.decision)):
            sent = moment
    return table


def _queued(story: RequestStory, moment: Moment, sent: Moment | None) -> Iterator[str]:
    """The wait before a request was sent for the first time."""
    first = sent is None and moment.what in (What.PREFILL_SENT, What.DECODE_SENT)
    if first and moment.seconds >= _QUEUED_SECONDS:
        why = f": {story.outcome.waited}" if story.outcome is not None and story.outcome.waited else ""
        yield f"waited {span(moment.seconds)}{why}"


def _why(story: RequestStory, moment: Moment, sent: Moment | None) -> Iterator[str]:
    if moment.decision is not None:
        yield from moment.decision.reasons
    if moment.detail and not _computes(moment.decision):  # else the reasons have said it
        yield moment.detail
    if moment.cached_tokens is not None and sent is not None:
        ended = moment.what is What.PREFILL_ENDED
        if ended or sent.what is What.DECODE_SENT:
            yield _computed(moment, sent)
    if moment.transferred_tokens:
        yield f"KV of {moment.transferred_tokens} tokens came over"
    if moment.output_tokens:
        yield f"{moment.output_tokens} tokens of output"


def _computed(moment: Moment, sent: Moment) -> str:
    """What a prompt really took, beside what was predicted."""
    choice = _computing(sent.decision)
    took = f"prompt computed in {span(moment.seconds - sent.seconds)}"
    cached = f"{moment.cached_tokens} tokens were cached"
    if choice is None:
        return f"{took}; {cached}"
    predicted = span(choice.wait_seconds + choice.work_seconds)
    return f"{took} (predicted {predicted}); {cached} (predicted {choice.cached_tokens})"


def _computing(decision: Decision | None) -> Choice | None:
    if decision is None:
        return None
    return decision.on_prefill if decision.prefill else decision.on_decode


def _computes(decision: Decision | None) -> bool:
    """Whether the decode worker computes the prompt."""
    return decision is not None and decision.prefill is None


def _outcome(story: RequestStory) -> Iterator[Text]:
    report = story.outcome
    if report is None:
        sent = any(moment.what in (What.PREFILL_SENT, What.DECODE_SENT) for moment in story.moments)
        waits = f"waits: {story.waits}" if story.waits else "under way" if sent else "waits"
        yield Text(f"no outcome: {waits}", style="yellow")
        return
    style = "bold green" if report.outcome == "finished" else "bold red"
    code = f" ({story.error})" if story.error else ""
    attempts = "1 attempt" if report.attempts == 1 else f"{report.attempts} attempts"
    yield Text.assemble((f"{report.outcome}{code}", style), f" after {span(report.total_seconds)}, {attempts}")
    yield _joined([f"{name} {span(value)}" for name, value in _times(report) if value is not None])
    yield _joined(
        [
            f"{report.output_tokens} tokens of output",
            f"{report.cached_tokens} of {report.prompt_tokens} prompt tokens cached"
            + ("" if report.predicted_cached_tokens is None else f" ({report.predicted_cached_tokens} predicted)"),
            f"{byte_count(report.kv_bytes)} of KV cache moved" if report.kv_bytes else "",
        ]
    )


def _times(report: RequestReport) -> Iterator[tuple[str, float | None]]:
    yield "first token after", report.ttft_seconds
    yield "queue", report.queue_seconds
    yield "prefill", report.prefill_seconds
    yield "transfer", report.transfer_seconds


def _joined(parts: list[str]) -> Text:
    return Text(without_control(" · ".join(part for part in parts if part)), style="dim")
