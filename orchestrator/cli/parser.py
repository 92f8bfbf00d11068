"""The arguments of every command. Imports nothing heavy."""

from __future__ import annotations

import argparse
from importlib import metadata

from orchestrator.cli.exits import HELP

_Commands = argparse._SubParsersAction  # argparse has no public name for it


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``segue``; every command sets ``module``, the module of orchestrator.cli that runs it."""
    parser = argparse.ArgumentParser(
        prog="segue",
        description="Serves models with prefill and decode in separate workers.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_up, _status, _chat, _logs, _upgrade, _down, _config, _plan, _sim, _batch, _gateway, _explain, _replay):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from orchestrator.compiled import is_compiled

        core = "compiled" if is_compiled() else "not compiled"
        parser.exit(message=f"segue {metadata.version('segue')} (core {core})\n")


def _command(commands: _Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(module=name)
    return parser


def _on_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="the cluster's name; not needed while one runs on this machine")
    address = "a gateway's gRPC address; or a Ray's on which the cluster is: auto, or with --name HOST:PORT"
    parser.add_argument("--address", metavar="ADDRESS", type=_said, help=address)


def _which_cluster(parser: argparse.ArgumentParser, *, remote: bool = False) -> argparse._MutuallyExclusiveGroup:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--name", help="the cluster's name; not needed while one runs on this machine")
    if remote:
        group.add_argument("--address", metavar="HOST:PORT", help="a gateway's gRPC address, for a cluster elsewhere")
    return group


def _up(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "up", "start a cluster, here or on a Ray that is there, and stay until Ctrl-C")
    parser.add_argument("config", metavar="CONFIG", help="the cluster's YAML file")
    parser.add_argument("--detach", action="store_true", help="return once it is ready and leave it running")
    there = "of a Ray that is there (HOST:PORT, or auto), to come onto it; without it: a Ray of its own"
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="ADDRESS", type=_said, help=there)
    attach = "onto the Ray whose job or node this is; the cluster ends with this command, however that ends"
    where.add_argument("--attach", action="store_true", help=attach)
    keep = "on a Ray that is there: leave the cluster running; with --detach, return once it is ready"
    parser.add_argument("--keep", action="store_true", help=keep)
    parser.add_argument("--no-gateways", action="store_true", help="workers only; see `segue gateway`")
    bind = "with --attach or --keep: listen on the network, whatever the configuration says, as a pod has to"
    nodes = "with --attach or --keep: wait until so many nodes that can run a worker have joined"
    parser.add_argument("--nodes", metavar="COUNT", type=_positive, default=0, help=nodes)
    parser.add_argument("--bind", choices=["node"], help=bind)
    kubernetes = (
        "with --attach or --keep: the RayCluster that this Ray is, in whose pod this runs; for events and status"
    )
    parser.add_argument("--kubernetes", metavar="RAYCLUSTER", type=_said, help=kubernetes)
    parser.add_argument("--record", metavar="FILE", help="write what routing sees and decides into a new file")
    parser.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-session", action="store_true", help=argparse.SUPPRESS)


def _gateway(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "gateway", "run one gateway of a cluster that is up, until SIGTERM")
    parser.add_argument("--controller", metavar="HOST:PORT", required=True, help="of the cluster, by which it is led")
    parser.add_argument("--name", metavar="ID", help="unlike any other gateway's (default: host name and process id)")
    parser.add_argument("--http", metavar="HOST:PORT", help="to listen on, instead of what the configuration says")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="to listen on, instead of what the configuration says")
    linger = "seconds after SIGTERM in which it is not ready but still takes requests (default: %(default)g)"
    # A controller may well be started after its gateways.
    wait = "for a controller, before it gives up (default: %(default)g)"
    parser.add_argument("--wait", metavar="SECONDS", type=_above_zero, default=300.0, help=wait)
    parser.add_argument("--linger", metavar="SECONDS", type=_not_negative, default=5.0, help=linger)
    parser.add_argument("--log-dir", metavar="DIR", help="write a log file there, instead of to this terminal")


def _upgrade(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "upgrade", "make a running cluster that of another configuration, under load")
    parser.add_argument("config", metavar="CONFIG", help="the cluster's changed YAML file")
    parser.add_argument("--name", help="the cluster's name; not needed where the file has the same")
    parser.add_argument("--address", metavar="ADDRESS", type=_said, help="of the Ray that it is on, if elsewhere")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change, and whether it fits")
    parser.add_argument("--json", action="store_true", help="what would change, for programs; progress to stderr")
    missing = "where there is no room for another, the only replica of a pool may go before the new one is there"
    parser.add_argument("--allow-unavailable", action="store_true", help=missing)


def _plan(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "plan", "does it fit, how is it cut, where does it go and what does it cost")
    parser.add_argument("config", metavar="CONFIG", help="the cluster's YAML file; nothing is started")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--inventory", metavar="FILE", help="nodes and their devices (YAML); without it: " + _PLAN_ON)
    where.add_argument(
        "--address", metavar="ADDRESS", type=_said, help="of a Ray whose nodes it is to go on (HOST:PORT, or auto)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


_PLAN_ON = (
    "the nodes of the running cluster of that name, or this machine's CPU and GPUs as they would have to be bought"
)


def _down(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "down", "drain and stop a cluster")
    parser.add_argument("--name", help="the cluster's name; not needed while one runs on this machine")
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        type=_said,
        help="of the Ray that it is on, if its `segue up` is gone",
    )


def _status(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "status", "show models, pools, workers and their load")
    _on_ray(parser)
    parser.add_argument("--json", action="store_true", help="for programs; with --watch one object a line")
    parser.add_argument("--watch", action="store_true", help="show it again after every change")


def _chat(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "chat", "talk to a model")
    _on_ray(parser)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="ask this and exit; without it: a conversation")
    parser.add_argument("--model", help="not needed where one is served")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--max-tokens", type=_positive, default=512, help="of an answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default: the model's own")


def _batch(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "batch", "run requests in OpenAI's batch format; goes on where it was stopped")
    parser.add_argument("input", metavar="INPUT", help="a request a line: custom_id, method, url and body")
    parser.add_argument("output", metavar="OUTPUT", help="the results in the same order, once all are there")
    parser.add_argument("--model", type=_said, help="goes before the models that lines name")
    where = parser.add_mutually_exclusive_group()
    address = "of the Ray that the cluster is on; in a job of a Ray its own"
    where.add_argument("--address", metavar="ADDRESS", type=_said, help=address)
    where.add_argument("--gateway", metavar="URL", type=_said, help="of a gateway, or of what stands before several")
    parser.add_argument("--name", help="the cluster's name; not needed where there is one")
    most = "requests under way at once, at most; fewer where the cluster refuses (default: %(default)s)"
    parser.add_argument("--concurrency", metavar="N", type=_positive, default=64, help=most)
    parser.add_argument("--json", action="store_true", help="the summary for programs")


def _config(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "config", "work with configuration files")
    check = parser.add_subparsers(metavar="ACTION", required=True).add_parser(
        "check", help="validate a file and start nothing", description="Validates a file and starts nothing."
    )
    check.set_defaults(module="config_check")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--json", action="store_true", help="the validated configuration, or the error, as JSON")


def _logs(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "logs", "show what workers, gateways and the controller wrote on this machine")
    which = _which_cluster(parser)
    which.add_argument("--address", type=_said, help=argparse.SUPPRESS)  # of other commands: it is told why not here
    parser.add_argument("workers", metavar="WORKER", nargs="*", help="only these (a part of the name is enough)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=_positive, default=20, help="last lines of each (default: %(default)s)")


def _explain(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "explain", "tell why a request went where it went")
    which = _which_cluster(parser, remote=True)
    parser.add_argument(
        "request", metavar="REQUEST_ID", help="as the client, a log or a span knows it, or its beginning"
    )
    which.add_argument("--file", metavar="RECORDING", help="look into a recording instead of the gateways' memory")
    parser.add_argument("--json", action="store_true", help="for programs")


def _replay(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "replay", "feed a recording to a fresh router: it has to decide the same again")
    parser.add_argument("file", metavar="FILE", help="what `segue up --record` wrote")
    parser.add_argument("--json", action="store_true", help="for programs")


def _sim(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "sim", "simulate a cluster: the real router, modelled engines, a virtual clock")
    parser.add_argument("config", metavar="CONFIG", help="a cluster's configuration file")
    trace = "a file (JSON lines or CSV), or generate:poisson or generate:bursts with settings (see docs/simulator.md)"
    parser.add_argument("--trace", metavar="FILE", required=True, help=trace)
    parser.add_argument("--replicas", metavar="N", help="of all pools together, or ROLE=N,...; default: as configured")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same run (default: %(default)s)")
    parser.add_argument("--model", help="not needed where one is configured")
    parser.add_argument("--policy", help="route by this policy instead of the configured one")
    parser.add_argument("--gateways", type=_positive, default=1, help="each with its own view (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--plot", metavar="FILE.html", help="write charts to one HTML file")
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=_above_zero, metavar="R", help="requests a second, on average")
    load.add_argument("--speed", type=_above_zero, metavar="X", help="play the trace X times as fast")
    load.add_argument("--duration", type=_above_zero, metavar="S", help="only requests of the first S seconds")
    load.add_argument("--requests", type=_positive, metavar="N", help="only the first N requests")
    load.add_argument("--deadline", type=_above_zero, metavar="S", help="clients give a request S seconds")
    slo = parser.add_argument_group("objectives, which goodput counts by")
    slo.add_argument("--slo-ttft-ms", type=_above_zero, default=2000.0, metavar="MS", help="default: %(default)g")
    slo.add_argument("--slo-itl-ms", type=_above_zero, default=100.0, metavar="MS", help="default: %(default)g")
    world = parser.add_argument_group("world")
    faults = "crash:W@T, drain:W@T, slow:W@T:xF, partition:G-W@T+D, lose:P, reorder:P, leave:P, random:K; with commas"
    world.add_argument("--faults", default="", help=faults)
    world.add_argument("--delay-ms", type=_not_negative, default=0.2, help="of the network (default: %(default)g)")
    world.add_argument("--jitter-ms", type=_not_negative, default=0.1, help="on top of it (default: %(default)g)")
    off = "by up to this share engines are off what is expected of them, %s (default: 0.05, for mock engines 0)"
    world.add_argument("--spread", type=_share, help=off % "for good")
    world.add_argument("--noise", type=_share, help=off % "in each step")


def _said(text: str) -> str:
    if not text:  # as of a variable that isn't set: without the option something else is meant
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _not_negative(text: str) -> float:
    return 0.0 if float(text) == 0 else _above_zero(text)


def _share(text: str) -> float:
    number = _not_negative(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
