"""``segue chat``."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from orchestrator.cli import attach, rpc, run_folder, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.turn import Answer, Wish, ask, message
from orchestrator.core.errors import ClusterUnreachable, ConfigError, NotReady, SegueError
from orchestrator.proto.inference_pb2 import ChatMessage

_HELP = "Ask something. /reset forgets the conversation; Ctrl-D leaves, Ctrl-C stops an answer."


def run(args: argparse.Namespace) -> Exit:
    """Exit 0, 3 when the cluster is not running or has no ready worker."""
    address = _address(args.address, args.name)
    wish = Wish(args.model or _only_model(address), args.max_tokens, args.temperature)
    conversation = [message("system", args.system)] if args.system else []
    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is None:
        return _Conversation(address, wish, conversation).run()
    if not prompt:
        raise ConfigError("the prompt is empty", where="PROMPT")
    answer = ask(address, [*conversation, message("user", prompt)], wish, _show)
    _end(terminal.err(), answer)
    return Exit.OK


def _address(address: str | None, name: str | None) -> str:
    if address:
        return attach.gateway_on(address, name)[1] if attach.of_a_ray(address, name) else address
    _, record = run_folder.find(name)
    if not record.grpc:
        hint = "segue status --watch shows when it is ready"
        raise ClusterUnreachable(f"cluster {record.name} is {record.phase}", hint=hint)
    return record.grpc


def _only_model(address: str) -> str:
    """The model to talk to where none is named. Raises ConfigError where the choice is not clear."""
    able = [model for model in rpc.models(address) if not model.tasks or "generate" in model.tasks]
    if not able:
        raise NotReady("no model here can chat")
    if len(able) > 1:
        names = ", ".join(model.name for model in able)
        raise ConfigError(f"several models are served: {names}", hint="choose one with --model")
    return able[0].name


class _Conversation:
    """Turns until end of input; the model sees all of them."""

    def __init__(self, address: str, wish: Wish, opening: list[ChatMessage]) -> None:
        import readline  # noqa: F401  # gives input() its line editing

        self._address = address
        self._wish = wish
        self._opening = opening
        self._console = terminal.out()

    def run(self) -> Exit:
        self._console.print(f"{self._wish.model}. {_HELP}", style="dim")
        messages = list(self._opening)
        while True:
            try:
                said = input("\n> ").strip()
            except EOFError:
                self._console.print()
                return Exit.OK
            if said == "/reset":
                messages = list(self._opening)
                self._console.print("forgotten", style="dim")
            elif said:
                messages = self._turn([*messages, message("user", said)])

    def _turn(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        """Returns the conversation after the turn; one that failed or was stopped leaves no trace in it."""
        try:
            answer = ask(self._address, messages, self._wish, _show)
        except KeyboardInterrupt:
            self._console.print("\nstopped", style="dim")
            return messages[:-1]
        except SegueError as error:
            self._console.print(str(error), style="red")
            return messages[:-1]
        _end(self._console, answer)
        return [*messages, message("assistant", answer.text)]


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _end(console: Console, answer: Answer) -> None:
    _show("\n")
    console.print(answer.account(), style="dim", soft_wrap=not console.is_terminal)
