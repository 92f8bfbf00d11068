"""``segue plan``."""

from __future__ import annotations

import argparse
import json

from orchestrator import config
from orchestrator.cli import terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.plan_view import as_tables
from orchestrator.core.planning.plan import plan
from orchestrator.planning.as_json import as_json
from orchestrator.planning.asking import asked, devices


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 where all of it fits, 3 where it doesn't; 2 where the configuration or the inventory is wrong."""
    spec = config.load(args.config)
    inventory = devices(spec, args.inventory)
    console = terminal.err()
    with console.status("", spinner="dots") as status:
        found = plan(spec, asked(spec, status.update), inventory)
    if args.json:
        terminal.out().print(json.dumps(as_json(found), indent=2), soft_wrap=True)
    else:
        terminal.out().print(as_tables(found))
    return Exit.OK if found.fits else Exit.DOES_NOT_FIT
