"""What a person sees once the cluster is ready: where it is, how to use it, and that it works."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.text import Text

from orchestrator.cli import rpc
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder
from orchestrator.cli.turn import Wish, ask, message
from orchestrator.core.errors import NotReady
from orchestrator.core.spec import ClusterSpec

_QUESTION = "What is the capital of France?"
# A gateway that has just bound its ports may learn of the last worker a moment after the controller did.
_GATEWAY_SECONDS = 20.0


def bare(progress: Progress, spec: ClusterSpec, folder: RunFolder, controller: str, end: str) -> None:
    """Of a cluster without gateways of its own."""
    progress.say("")
    progress.say(Text.assemble(("Workers are up", "bold green"), f", after {progress.elapsed:.1f} s: {spec.name}"))
    progress.say(f"  controller    {controller}")
    progress.say(f"  logs          {folder.logs}")
    progress.say("")
    progress.say(Text.assemble((f"Start a gateway: segue gateway --controller {controller}    Stop it: {end}", "dim")))


def show(progress: Progress, spec: ClusterSpec, folder: RunFolder, gateway: Any, end: str) -> None:
    """Prints endpoints, a curl, one real completion and ``end``, which stops it. Raises what that completion raised."""
    model = _talkative(gateway.grpc, spec)
    progress.say("")
    progress.say(Text.assemble(("Segue is up", "bold green"), f", after {progress.elapsed:.1f} s: cluster {spec.name}"))
    progress.say(f"  OpenAI, HTTP  http://{gateway.http}/v1")
    progress.say(f"  gRPC          {gateway.grpc}  (segue.v1.Inference, segue.v1.Cluster; with reflection)")
    progress.say(f"  logs          {folder.logs}")
    if model:
        progress.say("")
        progress.say(curl(gateway.http, model))
        progress.say("")
        _first_completion(progress, gateway.grpc, model)
    progress.say("")
    progress.say(
        Text.assemble((f"Talk to it: segue chat    Look at it: segue status --watch    Stop it: {end}", "dim"))
    )


def curl(http: str, model: str) -> str:
    """A command to paste; greedy, so that a small model answers as it just did."""
    body = json.dumps({"model": model, "temperature": 0, "messages": [{"role": "user", "content": _QUESTION}]})
    return f"  curl http://{http}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{body}'"


def _talkative(address: str, spec: ClusterSpec) -> str | None:
    """The first model that can generate, once the gateway can serve it; None if there is none. Raises NotReady."""
    deadline = time.monotonic() + _GATEWAY_SECONDS
    while True:
        served = rpc.models(address)
        able = [model.name for model in served if not model.tasks or "generate" in model.tasks]
        if all(model.ready for model in served) and len(served) == len(spec.models):
            return able[0] if able else None
        if time.monotonic() > deadline:
            raise NotReady("the gateway does not see all workers that the controller sees", where=address)
        time.sleep(0.1)


def _first_completion(progress: Progress, address: str, model: str) -> None:
    answer = ask(address, [message("user", _QUESTION)], Wish(model, max_tokens=48, temperature=0.0), lambda _: None)
    progress.tell(Text(f"> {_QUESTION}"))
    progress.tell(Text(answer.text.strip(), style="bold"))
    progress.tell(Text(answer.account(), style="dim"))
